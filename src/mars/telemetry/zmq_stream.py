# SPDX-License-Identifier: Apache-2.0
"""The engine's end of the stream: publishes events, takes commands, and replays.

Events: the engine binds PUB and sends ``[b"mars", instance, seq, msgpack list of event
maps]``. ``instance`` is new with each start of the process; ``seq`` (8 bytes, big-endian)
is the number of the batch's first event. Commands: the engine binds ROUTER; the control
plane's DEALERs send msgpack maps. The command ``replay`` is answered from a bounded ring
of recent batches (docs/stream.md). Both ends are bounded and never block.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import zmq

from mars.core.events import Event
from mars.telemetry.codec import Record, encode_batch

TOPIC = b"mars"
EVENTS_HWM = 1_000
"""Batches that ZMQ queues per slow reader, at each end, before it drops: below what the
ring keeps, so that the ring still has what the queue dropped."""
COMMANDS_HWM = 10_000
"""Commands (and batches of one replay) queued; above what the ring keeps."""
RING_BATCHES = 8_192
"""About 80 s of an engine at 100 steps/s (chosen)."""
RING_BYTES = 32 * 2**20
REPLAY_BATCH = b"batch"
REPLAY_END = b"end"


class StreamError(RuntimeError):
    """An endpoint cannot be used; the message names it and the setting."""


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


def source_of_rank(rank: int) -> str:
    """Envelope of the events of one rank."""
    return f"engine.{rank}" if rank else "engine"


def bounded_socket(context: Any, kind: int, hwm: int) -> Any:
    """A socket that gives up what is queued when closed."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    return socket


def connect(socket: Any, endpoint: str, setting: str) -> None:
    """Connect a socket to what the engine binds; it may bind later, or again.

    Raises:
        StreamError: not an address.
    """
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise StreamError(f"{setting} {endpoint!r}: {error}") from error


def _bind(socket: Any, endpoint: str, setting: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise StreamError(
            f"{setting} {endpoint!r} cannot be bound ({error}); "
            "is another engine running, or does its folder not exist?"
        ) from error


class Ring:
    """The latest batches as they were sent, bounded in number and bytes. Thread-safe."""

    def __init__(self, max_batches: int = RING_BATCHES, max_bytes: int = RING_BYTES) -> None:
        self._batches: deque[tuple[int, int, bytes]] = deque()
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()

    def keep(self, first: int, last: int, payload: bytes) -> None:
        """Keep the batch numbered ``first``..``last``; the oldest ones make room."""
        with self._lock:
            self._batches.append((first, last, payload))
            self._num_bytes += len(payload)
            while len(self._batches) > self._max_batches or self._num_bytes > self._max_bytes:
                self._num_bytes -= len(self._batches.popleft()[2])

    @property
    def oldest(self) -> int:
        """Number of the oldest event kept; 0 when there is none."""
        with self._lock:
            return self._batches[0][0] if self._batches else 0

    def between(self, first: int, last: int) -> list[bytes]:
        """Payloads of the kept batches that hold numbers ``first``..``last``."""
        with self._lock:
            return [batch for start, end, batch in self._batches if start <= last and end >= first]


class EventPublisher:
    """The writing end, in the engine process; for one thread.

    Args:
        endpoint: where to bind, ``ipc://...`` or ``tcp://127.0.0.1:PORT``.
        source: envelope of every event.
        hwm: batches queued per slow reader before some are dropped.
        ring: keeps recent batches for replay.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        source: str = "engine",
        hwm: int = EVENTS_HWM,
        ring: Ring | None = None,
    ) -> None:
        self._socket = bounded_socket(zmq.Context.instance(), zmq.PUB, hwm)
        _bind(self._socket, endpoint, "engine.events_endpoint")
        self._source = source
        self._next_seq = 1
        self.ring = ring or Ring()
        self.instance = uuid.uuid4().hex

    def send(self, events: Iterable[Event]) -> int:
        """Send one batch (one engine step's events); returns how many there were."""
        start = self._next_seq
        records = [Record(start + i, self._source, event) for i, event in enumerate(events)]
        if records:
            self._next_seq += len(records)
            payload = encode_batch(records)
            self.ring.keep(start, self._next_seq - 1, payload)
            frames = [TOPIC, self.instance.encode(), start.to_bytes(8, "big"), payload]
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=True)
        return len(records)

    def close(self) -> None:
        """Stop; what is queued is given up."""
        self._socket.close()


class ControlReceiver:
    """The engine's end of the commands; never blocks but in :meth:`wait`. For one thread.

    Args:
        endpoint: where to bind.
        hwm: commands queued here.
        publisher: whose ring answers requests for replay.
    """

    def __init__(
        self, endpoint: str, *, hwm: int = COMMANDS_HWM, publisher: EventPublisher | None = None
    ) -> None:
        self._socket = bounded_socket(zmq.Context.instance(), zmq.ROUTER, hwm)
        _bind(self._socket, endpoint, "engine.control_endpoint")
        self._publisher = publisher
        self.num_malformed = 0
        self.num_replayed = 0
        """Batches sent again on request."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for a command; False if none came."""
        return bool(self._socket.poll(timeout=int(timeout_s * 1000)))

    def poll(self, limit: int = 256) -> Iterator[dict[str, Any]]:
        """Commands that have arrived, at most ``limit``; malformed ones are counted."""
        for _ in range(limit):
            try:
                peer, *frames = self._socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = msgspec.msgpack.decode(frames[-1], type=dict[str, Any])
                is_replay = message.get("op") == "replay"
                if is_replay:
                    self._replay(peer, message)
            except (msgspec.DecodeError, RecursionError, LookupError, TypeError, ValueError):
                self.num_malformed += 1
                continue
            if not is_replay:
                yield message

    def _replay(self, peer: bytes, message: Mapping[str, Any]) -> None:
        """Send what is kept of ``first``..``last``; what is not kept is lost."""
        ticket = int(message["ticket"]).to_bytes(8, "big")
        first, last = int(message["first"]), int(message["last"])
        publisher = self._publisher
        batches, oldest = [], 0
        if publisher is not None and message["instance"] == publisher.instance:
            batches, oldest = publisher.ring.between(first, last), publisher.ring.oldest
        for payload in batches:
            self._socket.send_multipart([peer, REPLAY_BATCH, ticket, payload], flags=zmq.NOBLOCK)
        self.num_replayed += len(batches)
        self._socket.send_multipart(
            [peer, REPLAY_END, ticket, oldest.to_bytes(8, "big")], flags=zmq.NOBLOCK
        )

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()
