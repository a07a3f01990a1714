# SPDX-License-Identifier: Apache-2.0
"""Events and commands between engine and control plane, over ZMQ.

Events: the engine binds PUB and sends ``[b"mars", seq, msgpack list of event maps]``,
``seq`` (8 bytes, big-endian) being the number of the batch's first event; each event
carries its own number, so a reader counts exactly what a full queue dropped. Commands:
the engine binds PULL and polls it; the control plane pushes msgpack maps. Both ends
are bounded and never block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from mars.core.events import Event, EventsDropped
from mars.telemetry.codec import CodecError, Record, decode_batch, encode_batch

TOPIC = b"mars"
DEFAULT_HWM = 10_000
"""Batches (or commands) queued before ZMQ drops them; vLLM's KV-event default."""


class StreamError(RuntimeError):
    """An endpoint cannot be used; the message names it and the setting."""


def _socket(context: Any, kind: int, hwm: int) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    return socket


def _bind(socket: Any, endpoint: str, setting: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise StreamError(
            f"{setting} {endpoint!r} cannot be bound ({error}); "
            "is another engine running, or does its folder not exist?"
        ) from error


class EventPublisher:
    """The writing end, in the engine process; for one thread.

    Args:
        endpoint: where to bind, ``ipc://...`` or ``tcp://127.0.0.1:PORT``.
        source: envelope of every event.
        hwm: batches queued per slow reader before some are dropped.
    """

    def __init__(self, endpoint: str, *, source: str = "engine", hwm: int = DEFAULT_HWM) -> None:
        self._socket = _socket(zmq.Context.instance(), zmq.PUB, hwm)
        _bind(self._socket, endpoint, "engine.events_endpoint")
        self._source = source
        self._next_seq = 1

    def send(self, events: Iterable[Event]) -> int:
        """Send one batch (one engine step's events); returns how many there were."""
        start = self._next_seq
        records = [Record(start + i, self._source, event) for i, event in enumerate(events)]
        if records:
            self._next_seq += len(records)
            frames = [TOPIC, start.to_bytes(8, "big"), encode_batch(records)]
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=True)
        return len(records)

    def close(self) -> None:
        """Stop; what is queued is given up."""
        self._socket.close()


class GapCounter:
    """Turns sequence numbers into the number of records lost."""

    def __init__(self) -> None:
        self._expected: int | None = None

    def lost_before(self, first: int, last: int) -> int:
        """Records missing before a batch numbered ``first``..``last``.

        A number lower than expected means that the writer started again: nothing is
        known to be lost then.
        """
        expected, self._expected = self._expected, last + 1
        return 0 if expected is None else max(0, first - expected)


class EventSubscriber:
    """The reading end, in the control plane's event loop.

    Args:
        endpoint: what the engine binds; it may bind later, or again.
        hwm: batches queued here before ZMQ drops them (visible as a gap).
    """

    def __init__(self, endpoint: str, *, hwm: int = DEFAULT_HWM) -> None:
        self._socket = _socket(zmq.asyncio.Context.instance(), zmq.SUB, hwm)
        self._socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise StreamError(f"engine.events_endpoint {endpoint!r}: {error}") from error
        self._gaps = GapCounter()
        self.num_lost = 0
        self.num_malformed = 0

    async def receive(self) -> list[Record]:
        """The next batch; starts with ``events_dropped`` when records are missing.

        A malformed batch counts as one lost record and is otherwise left out.
        """
        while True:
            frames: list[bytes] = await self._socket.recv_multipart()
            records = self._decode(frames)
            if records:
                return records

    def _decode(self, frames: list[bytes]) -> list[Record]:
        try:
            records = decode_batch(frames[-1])
        except CodecError:
            self.num_malformed += 1
            return []
        if not records:
            return []
        first = records[0]
        lost = self._gaps.lost_before(first.seq, records[-1].seq)
        if lost:
            self.num_lost += lost
            dropped = EventsDropped(time=first.event.time, count=lost, source=first.source)
            records.insert(0, Record(first.seq - 1, first.source, dropped))
        return records

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class ControlSender:
    """Pushes commands to the engine; drops and counts when the engine does not read.

    Args:
        endpoint: what the engine binds; it may bind later.
        hwm: commands queued before they are dropped.
    """

    def __init__(self, endpoint: str, *, hwm: int = DEFAULT_HWM) -> None:
        self._socket = _socket(zmq.Context.instance(), zmq.PUSH, hwm)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise StreamError(f"engine.control_endpoint {endpoint!r}: {error}") from error
        self.num_dropped = 0

    def send(self, op: str, **fields: Any) -> None:
        """Queue one command ``{"op": op, **fields}``."""
        try:
            self._socket.send(msgspec.msgpack.encode({"op": op, **fields}), flags=zmq.NOBLOCK)
        except zmq.Again:
            self.num_dropped += 1

    def close(self) -> None:
        """Stop; what is queued is given up."""
        self._socket.close()


class ControlReceiver:
    """The engine's end of the commands; polled once per step, never blocks.

    Args:
        endpoint: where to bind.
        hwm: commands queued here.
    """

    def __init__(self, endpoint: str, *, hwm: int = DEFAULT_HWM) -> None:
        self._socket = _socket(zmq.Context.instance(), zmq.PULL, hwm)
        _bind(self._socket, endpoint, "engine.control_endpoint")
        self.num_malformed = 0

    def poll(self, limit: int = 256) -> Iterator[dict[str, Any]]:
        """Commands that have arrived, at most ``limit``; malformed ones are counted."""
        for _ in range(limit):
            try:
                payload = self._socket.recv(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield msgspec.msgpack.decode(payload, type=dict[str, Any])
            except msgspec.DecodeError:
                self.num_malformed += 1

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()
