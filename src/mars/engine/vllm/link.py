# SPDX-License-Identifier: Apache-2.0
"""The engine's end of the event stream and of the control channel."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable
from typing import Any

from vllm.config import ParallelConfig

from mars.config import EngineConfig
from mars.core.events import EngineSampled, Event
from mars.telemetry.zmq_stream import ControlReceiver, EventPublisher


def rank_of(parallel: ParallelConfig) -> int:
    """Data-parallel rank of this engine; each rank is an engine core with own sockets."""
    return parallel.data_parallel_index


def endpoint_of_rank(endpoint: str, rank: int) -> str:
    """Address of one data-parallel rank: the port plus ``rank``, or a suffix ``.rank``.

    Raises:
        ValueError: a ``tcp`` address without a port.
    """
    if rank == 0:
        return endpoint
    if not endpoint.startswith("tcp://"):
        return f"{endpoint}.{rank}"
    host, _, port = endpoint.rpartition(":")
    if not port.isdigit():
        raise ValueError(f"endpoint {endpoint!r} names no port to count the ranks from")
    return f"{host}:{int(port) + rank}"


class EngineLink:
    """Collects events during a step and publishes them as one batch; reads commands.

    A small thread repeats the last sample while the engine has nothing to do, so that the
    control plane can tell an idle engine from a dead one. Without endpoints nothing is
    published and events are dropped at once.

    Args:
        config: names the endpoints.
        rank: data-parallel rank, which moves them (:func:`endpoint_of_rank`).
    """

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        self._pending: list[Event] = []
        self._receiver = (
            ControlReceiver(endpoint_of_rank(config.control_endpoint, rank))
            if config.control_endpoint
            else None
        )
        self._publisher: EventPublisher | None = None
        self._last_sample: EngineSampled | None = None
        self._sent_at = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        if config.events_endpoint:
            self._publisher = EventPublisher(endpoint_of_rank(config.events_endpoint, rank))
            threading.Thread(
                target=self._heartbeat,
                args=(config.sample_interval_s,),
                name="mars-heartbeat",
                daemon=True,
            ).start()

    @property
    def is_listening(self) -> bool:
        """Whether events go anywhere."""
        return self._publisher is not None

    def emit(self, event: Event) -> None:
        """Queue an event for the batch of this step."""
        if self._publisher is None:
            return
        self._pending.append(event)
        if isinstance(event, EngineSampled):
            self._last_sample = event

    def flush(self) -> None:
        """Publish what was queued."""
        if self._publisher is None or not self._pending:
            return
        batch, self._pending = self._pending, []
        self._send(batch)

    def commands(self) -> Iterable[dict[str, Any]]:
        """Commands of the control plane that have arrived."""
        return self._receiver.poll() if self._receiver is not None else ()

    def close(self) -> None:
        """Stop the thread and close both sockets."""
        self._stopping.set()
        with self._lock:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None
        if self._receiver is not None:
            self._receiver.close()

    def _send(self, batch: list[Event]) -> None:
        with self._lock:
            if self._publisher is not None:
                self._publisher.send(batch)
                self._sent_at = time.monotonic()

    def _heartbeat(self, interval_s: float) -> None:
        while not self._stopping.wait(interval_s):
            now = time.monotonic()
            if self._last_sample is not None and now - self._sent_at >= interval_s:
                self._send([dataclasses.replace(self._last_sample, time=now)])
