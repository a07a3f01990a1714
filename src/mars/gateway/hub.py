# SPDX-License-Identifier: Apache-2.0
"""The hub of the stream: every event goes through here, once, in one order.

Engine events (ZMQ), the gateway's own and those posted by tool pools are numbered on
the bus, folded, logged, counted for Prometheus, and turned into commands to the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from mars.config import TelemetryConfig
from mars.core import events as ev
from mars.gateway.restore import recall
from mars.telemetry import Bus, Fold, JsonlSink, Record
from mars.telemetry.parquet import write_parquet
from mars.telemetry.zmq_stream import ControlSender, EventSubscriber

Listener = Callable[[ev.Event, str], None]

KEEP_ENDED = 1_000
KEEP_SAMPLES = 1_200
"""Five minutes of samples at the engine's default of one in 0.25 s."""
LOG_BATCH = 256

_log = structlog.get_logger("mars.gateway")


class Hub:
    """Bus, fold, log and engine link of one gateway.

    Args:
        config: endpoints, log file and buffer size.
        clock: monotonic seconds.
    """

    def __init__(self, config: TelemetryConfig, clock: Callable[[], float] = time.monotonic):
        self.fold = Fold(keep_history=False, keep_ended=KEEP_ENDED, keep_samples=KEEP_SAMPLES)
        past = recall(Path(config.events_path), self.fold) if config.events_path else None
        self.bus = Bus(config.queue_events, last_seq=past.last_seq if past else 0)
        self.listeners: list[Listener] = []
        self._config = config
        self._clock = clock
        self._sink = JsonlSink(config.events_path) if config.events_path else None
        self._log_reader = self.bus.reader()
        self._subscriber: EventSubscriber | None = None
        self._control: ControlSender | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None

    @property
    def has_engine_events(self) -> bool:
        """Whether the engine's plug-in reports its events here."""
        return self._config.events_endpoint is not None

    def start(self) -> None:
        """Open the engine link and start the log; inside a running event loop."""
        if self._config.events_endpoint:
            self._subscriber = EventSubscriber(self._config.events_endpoint)
            self._tasks.append(asyncio.create_task(self._listen(self._subscriber)))
        if self._config.control_endpoint:
            self._control = ControlSender(self._config.control_endpoint)
        if self._sink is not None:
            self._tasks.append(asyncio.create_task(self._keep_log(self._sink)))

    async def stop(self) -> None:
        """Close the link, write what is left, and make the Parquet copy of the log."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._subscriber is not None:
            self._subscriber.close()
        if self._control is not None:
            self._control.close()
        if self._sink is not None:
            if self._writing is not None:
                await asyncio.gather(self._writing, return_exceptions=True)
            while records := self._log_reader.read():
                self._sink.write(records)
            self._sink.close()
            if write_parquet(self._sink.path) is None:
                _log.info("no Parquet copy of the event log: pyarrow is not installed")

    def emit(self, event: ev.Event, source: str = "gateway") -> Record:
        """Put one event into the stream and act on it."""
        record = self.bus.publish(event, source)
        self.fold.apply(event)
        for listener in self.listeners:
            listener(event, source)
        if self._control is not None:
            self._command(event, source)
        return record

    def _command(self, event: ev.Event, source: str) -> None:
        """Tell the engine what it must know of tools and ended sessions."""
        control = self._control
        if control is None:
            return
        if isinstance(event, ev.SessionEnded):
            control.send("session_end", session_id=event.session_id)
        elif isinstance(event, ev.ToolQueued | ev.ToolStarted):
            queued_s = event.queued_s if isinstance(event, ev.ToolStarted) else 0.0
            control.send(
                "tool_started",
                session_id=event.session_id,
                tool_call_id=event.tool_call_id,
                tool_name=event.tool_name,
                queued_at=event.time - queued_s,
                expected_return_at=None,
            )
        elif isinstance(event, ev.ToolFinished):
            view = self.fold.sessions.get(event.session_id)
            if view is None or not view.open_tools:  # the last one of a batch
                control.send("tool_finished", session_id=event.session_id, time=event.time)

    async def _listen(self, subscriber: EventSubscriber) -> None:
        while True:
            for record in await subscriber.receive():
                self.emit(record.event, record.source)

    async def _keep_log(self, sink: JsonlSink) -> None:
        """Write records as they come; the disk never makes the event loop wait."""
        reader = self._log_reader
        while True:
            await reader.wait()
            records = reader.read(LOG_BATCH)
            lines = sink.lines(records)
            self._writing = asyncio.ensure_future(asyncio.to_thread(sink.write_lines, lines))
            try:
                await asyncio.shield(self._writing)
            except OSError as error:
                _log.error("event log cannot be written", path=str(sink.path), error=str(error))
                lost = ev.EventsDropped(time=self._clock(), count=len(records), source="log")
                self.fold.apply(lost)
                await asyncio.sleep(1.0)

    @property
    def log_path(self) -> Path | None:
        """The event log's file, if one is kept."""
        return self._sink.path if self._sink is not None else None
