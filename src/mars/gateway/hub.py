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
from typing import Any

import structlog

from mars.config import TelemetryConfig
from mars.core import events as ev
from mars.core.returns import ReturnForecast
from mars.gateway.restore import carried, recall
from mars.telemetry import Bus, Fold, JsonlSink, Record
from mars.telemetry.parquet import write_parquet
from mars.telemetry.subscriber import ControlSender, EventSubscriber, ReplayClient
from mars.telemetry.zmq_stream import endpoint_of_rank

Listener = Callable[[ev.Event, str], None]

KEEP_ENDED = 1_000
KEEP_SAMPLES = 1_200
"""Five minutes of samples at the engine's default of one in 0.25 s."""
LOG_BATCH = 256
EMITTED_AT_ONCE = 256
"""Events of one kind of work before others get their turn in the event loop."""
LOG_RETRY_S = 1.0

_log = structlog.get_logger("mars.gateway")


class Hub:
    """Bus, fold, log and engine links of one gateway.

    Args:
        config: endpoints, log file and buffer size.
        clock: monotonic seconds.

    Raises:
        LogError: the event log is malformed or cannot be written.
    """

    def __init__(self, config: TelemetryConfig, clock: Callable[[], float] = time.monotonic):
        self.past = recall(Path(config.events_path), _new_fold) if config.events_path else None
        self.fold = self.past.fold if self.past else _new_fold()
        self.bus = Bus(config.queue_events, last_seq=self.past.last_seq if self.past else 0)
        self.listeners: list[Listener] = []
        self.num_unlogged = 0
        """Events the log lacks, because the disk was full or gone."""
        self._config = config
        self._clock = clock
        self._sink = JsonlSink(config.events_path) if config.events_path else None
        self._log_reader = self.bus.reader()
        self._subscribers: list[EventSubscriber] = []
        self._controls: list[ControlSender] = []
        self._returns = ReturnForecast()
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._num_untold = 0
        self._log_read = asyncio.Event()

    @property
    def has_engine_events(self) -> bool:
        """Whether the engine's plug-in reports its events here."""
        return self._config.events_endpoint is not None

    def links(self) -> list[dict[str, Any]]:
        """Each rank's stream: which engine process, how far, what was replayed or lost."""
        return [
            {
                "rank": link.rank,
                "instance": link.position.instance if link.position else None,
                "seq": link.position.seq if link.position else None,
                "num_restarts": link.num_restarts,
                "num_replayed": link.num_replayed,
                "num_lost": link.num_lost,
                "num_malformed": link.num_malformed,
            }
            for link in self._subscribers
        ]

    def start(self) -> None:
        """Open the engine links and start the log; inside a running event loop."""
        events, control = self._config.events_endpoint, self._config.control_endpoint
        for rank in range(self._config.engine_ranks):
            address = endpoint_of_rank(control, rank) if control else None
            if address:
                self._controls.append(ControlSender(address))
            if events:
                subscriber = EventSubscriber(
                    endpoint_of_rank(events, rank),
                    rank=rank,
                    replay=ReplayClient(address) if address else None,
                    position=self.past.positions.get(rank) if self.past else None,
                )
                self._subscribers.append(subscriber)
                self._tasks.append(asyncio.create_task(self._listen(subscriber)))
        if self._sink is not None:
            self._tasks.append(asyncio.create_task(self._keep_log(self._sink)))

    async def stop(self) -> None:
        """Close the links, write what is left, and make the Parquet copy of the log."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for link in (*self._subscribers, *self._controls):
            link.close()
        if self._sink is None:
            return
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        try:
            while records := self._log_reader.read():
                self._sink.write(records)
            self._sink.close()
            if write_parquet(self._sink.path) is None:
                _log.info("no Parquet copy of the event log: pyarrow is not installed")
        except OSError as error:
            _log.error("event log cannot be closed", path=str(self._sink.path), error=str(error))

    def emit(self, event: ev.Event, source: str = "gateway") -> Record:
        """Put one event into the stream and act on it."""
        record = self.bus.publish(event, source)
        self.fold.apply(event)
        for listener in self.listeners:
            listener(event, source)
        if self._controls:
            self._command(event)
        return record

    def send(self, op: str, **fields: Any) -> None:
        """Send a command to every rank: a session's turns may be on any of them."""
        for control in self._controls:
            control.send(op, **fields)

    def _command(self, event: ev.Event) -> None:
        """Tell the engine what it must know of tools, and of sessions whose KV may go."""
        expected_return_at = self._returns.take(event)
        if isinstance(event, ev.SessionEnded):
            self.send("session_end", session_id=event.session_id)
        elif isinstance(event, ev.SessionPaused | ev.SessionResumed):
            self.send(event.kind, session_id=event.session_id)
        elif isinstance(event, ev.ContextReset):
            self.send(
                event.kind, session_id=event.session_id, num_kept_tokens=event.num_kept_tokens
            )
        elif isinstance(event, ev.ToolQueued | ev.ToolStarted):
            queued_s = event.queued_s if isinstance(event, ev.ToolStarted) else 0.0
            self.send(
                "tool_started",
                session_id=event.session_id,
                tool_call_id=event.tool_call_id,
                tool_name=event.tool_name,
                queued_at=event.time - queued_s,
                expected_return_at=expected_return_at,
            )
        elif isinstance(event, ev.ToolFinished):
            view = self.fold.sessions.get(event.session_id)
            if view is None or not view.open_tools:  # the last one of a batch
                self.send("tool_finished", session_id=event.session_id, time=event.time)

    async def _listen(self, subscriber: EventSubscriber) -> None:
        while True:
            records = await subscriber.receive()
            for start in range(0, len(records), EMITTED_AT_ONCE):
                for record in records[start : start + EMITTED_AT_ONCE]:
                    self.emit(record.event, record.source)
                await self._log_keeps_up()

    async def _log_keeps_up(self) -> None:
        """Give others their turn; let a burst wait in ZMQ rather than run over the log."""
        await asyncio.sleep(0)
        while self._is_log_behind():
            self._log_read.clear()
            await self._log_read.wait()

    def _is_log_behind(self) -> bool:
        if self._sink is None or self._num_untold:  # a full disk holds nobody up
            return False
        return self.bus.last_seq - self._log_reader.seq > self._config.queue_events // 2

    async def _keep_log(self, sink: JsonlSink) -> None:
        """Write records as they come; the disk never makes the event loop wait."""
        reader = self._log_reader
        num_headers = sink.num_headers
        while True:
            await reader.wait()
            records = reader.read(LOG_BATCH)
            self._log_read.set()
            if not records or not await self._logged(sink, records):
                continue
            if sink.num_headers != num_headers:
                num_headers = sink.num_headers
                self._tasks = [task for task in self._tasks if not task.done()]
                self._tasks.append(asyncio.create_task(self._checkpoint()))

    async def _logged(self, sink: JsonlSink, records: list[Record]) -> bool:
        """Write records; those that cannot be written are counted, and told in the log later."""
        lines = sink.lines([*self._unlogged(records[0]), *records])
        self._writing = asyncio.ensure_future(asyncio.to_thread(sink.write_lines, lines))
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            _log.error("event log cannot be written", path=str(sink.path), error=str(error))
            self._num_untold += len(records)
            self.num_unlogged += len(records)
            lost = ev.EventsDropped(time=self._clock(), count=len(records), source="log")
            self.fold.apply(lost)
            await asyncio.sleep(LOG_RETRY_S)
            return False
        self._num_untold = 0
        return True

    def _unlogged(self, before: Record) -> list[Record]:
        """What the log is to say of records it lacks, if it lacks some."""
        if not self._num_untold:
            return []
        lost = ev.EventsDropped(time=before.event.time, count=self._num_untold, source="log")
        return [Record(before.seq - 1, "log", lost)]

    async def _checkpoint(self) -> None:
        """Restate what lives on, for who reads the log from here."""
        for subscriber in self._subscribers:
            if (mark := subscriber.mark(self._clock())) is not None:
                self.emit(mark)
        views = list(self.fold.sessions.values())
        for start in range(0, len(views), EMITTED_AT_ONCE):
            for view in views[start : start + EMITTED_AT_ONCE]:
                if view.ended_at is None:
                    self.emit(carried(view, self._clock()))
            await asyncio.sleep(0)

    @property
    def log_path(self) -> Path | None:
        """The event log's file, if one is kept."""
        return self._sink.path if self._sink is not None else None


def _new_fold() -> Fold:
    return Fold(keep_history=False, keep_ended=KEEP_ENDED, keep_samples=KEEP_SAMPLES)
