# SPDX-License-Identifier: Apache-2.0
"""The engine's end of the event stream and of the control channel."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from mars.config import EngineConfig
from mars.core.events import EngineSampled, Event, HostKvSampled
from mars.telemetry.zmq_stream import (
    COMMANDS_HWM,
    ControlReceiver,
    EventPublisher,
    endpoint_of_rank,
    source_of_rank,
)

STOP_CHECK_S = 0.25
"""How long the link's thread may take to notice that it is to stop."""
HUNG_S = 30.0
"""Longest step that is believed: several times the largest prefill step of the slowest
profile; an engine that is stuck longer shows as stale (chosen)."""


class EngineLink:
    """Collects events during a step and publishes them as one batch; takes commands.

    A small thread receives commands and answers requests for replay whatever the engine
    does, and repeats the last sample while the engine has nothing to do, so that the
    control plane can tell an idle engine from a dead one. A busy engine that ends no step
    for ``hung_s`` is let fall silent. Without endpoints nothing is published and events
    are dropped at once.

    Args:
        config: names the endpoints.
        rank: data-parallel rank, which moves them (:func:`endpoint_of_rank`).
        hung_s: longest step that is believed.

    Raises:
        StreamError: an endpoint cannot be bound.
    """

    def __init__(self, config: EngineConfig, rank: int = 0, *, hung_s: float = HUNG_S) -> None:
        self._rank = rank
        self._hung_s = hung_s
        self._pending: list[Event] = []
        self._commands: deque[dict[str, Any]] = deque(maxlen=COMMANDS_HWM)
        self._publisher: EventPublisher | None = None
        self._last_sample: EngineSampled | None = None
        self._sent_at = self._stepped_at = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        receiver = None
        if config.events_endpoint:
            self._publisher = EventPublisher(
                endpoint_of_rank(config.events_endpoint, rank), source=source_of_rank(rank)
            )
        if config.control_endpoint:
            endpoint = endpoint_of_rank(config.control_endpoint, rank)
            receiver = ControlReceiver(endpoint, publisher=self._publisher)
        self._thread = threading.Thread(
            target=self._serve,
            args=(receiver, config.sample_interval_s),
            name="mars-link",
            daemon=True,
        )
        if self._publisher is not None or receiver is not None:
            self._thread.start()

    @property
    def is_listening(self) -> bool:
        """Whether events go anywhere."""
        return self._publisher is not None

    def emit(self, event: Event) -> None:
        """Queue an event for the batch of this step."""
        if self._publisher is None:
            return
        if self._rank and isinstance(event, EngineSampled | HostKvSampled):
            event = dataclasses.replace(event, engine_rank=self._rank)
        if isinstance(event, EngineSampled):
            self._last_sample = event
        self._pending.append(event)

    def flush(self) -> None:
        """Publish what was queued."""
        if self._publisher is None or not self._pending:
            return
        batch, self._pending = self._pending, []
        self._stepped_at = time.monotonic()
        self._send(batch)

    def commands(self) -> Iterator[dict[str, Any]]:
        """Commands of the control plane that have arrived."""
        while self._commands:
            yield self._commands.popleft()

    def close(self) -> None:
        """Stop the thread and close both sockets."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None

    def _send(self, batch: list[Event]) -> None:
        with self._lock:
            if self._publisher is not None:
                self._publisher.send(batch)
                self._sent_at = time.monotonic()

    def _serve(self, receiver: ControlReceiver | None, interval_s: float) -> None:
        """The thread: the receiver's socket is its own."""
        wait_s = min(interval_s, STOP_CHECK_S)
        while not self._stopping.is_set():
            if receiver is None:
                self._stopping.wait(wait_s)
            elif receiver.wait(wait_s):
                self._commands.extend(receiver.poll())
            self._beat(interval_s)
        if receiver is not None:
            receiver.close()

    def _beat(self, interval_s: float) -> None:
        sample, now = self._last_sample, time.monotonic()
        if sample is None or now - self._sent_at < interval_s:
            return
        is_busy = sample.num_running > 0 or sample.num_waiting > 0
        if not is_busy or now - self._stepped_at < self._hung_s:
            self._send([dataclasses.replace(sample, time=now)])
