# SPDX-License-Identifier: Apache-2.0
"""The control plane's end of the stream: reads one engine's events, asks for missed ones.

Every event is numbered by its engine, so a reader knows exactly which it missed: dropped
by a full queue, or sent before it was there. Those are asked for again; only what the
engine keeps no more is reported lost. An engine that starts again has a new instance.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio

from mars.core import events as ev
from mars.telemetry.codec import CodecError, Record, decode_batch
from mars.telemetry.zmq_stream import (
    COMMANDS_HWM,
    EVENTS_HWM,
    REPLAY_END,
    TOPIC,
    bounded_socket,
    connect,
    source_of_rank,
)

REPLAY_TIMEOUT_S = 2.0
"""Between two answers of a replay: the engine's link answers within milliseconds unless
the machine starves it; control sees stale telemetry after as long (chosen)."""

REPLAY_CHUNK = 10_000
"""Events asked for at once, which bounds what a long replay takes in memory."""
REPLAY_ATTEMPTS = 5
"""To catch up with a ring that moves on while it is asked."""
MAX_WATCHED = 100_000
"""Open turns (and held sessions) remembered of one engine; far more than any runs at once."""


class Position(NamedTuple):
    """How far a reader got in one engine's stream."""

    instance: str
    seq: int
    """Number of the last event read."""


class ReplayClient:
    """Asks one engine for batches it sent before."""

    def __init__(self, endpoint: str, *, timeout_s: float = REPLAY_TIMEOUT_S) -> None:
        self._socket = bounded_socket(zmq.asyncio.Context.instance(), zmq.DEALER, COMMANDS_HWM)
        connect(self._socket, endpoint, "telemetry.control_endpoint")
        self._timeout_s = timeout_s
        self._ticket = 0

    async def fetch(self, instance: str, first: int, last: int) -> tuple[list[Record], int]:
        """Events ``first``..``last`` of an instance, in order, as far as they are kept.

        Beside them the number of the oldest event kept; 0 when nothing is, or nobody answers.
        """
        self._ticket += 1
        wanted = {"op": "replay", "ticket": self._ticket, "first": first, "last": last}
        found: list[Record] = []
        oldest = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._socket.send(msgspec.msgpack.encode(wanted | {"instance": instance}))
            while True:
                async with asyncio.timeout(self._timeout_s):
                    kind, ticket, payload = await self._socket.recv_multipart()
                if int.from_bytes(ticket, "big") != self._ticket:
                    continue  # of a request that was given up
                if kind == REPLAY_END:
                    oldest = int.from_bytes(payload, "big")
                    break
                found += [r for r in decode_batch(payload) if first <= r.seq <= last]
        except (TimeoutError, CodecError):
            pass  # what came so far is what there is; the rest is reported lost
        return sorted(found, key=lambda record: record.seq), oldest

    def close(self) -> None:
        """Stop."""
        self._socket.close()


class EventSubscriber:
    """Reads one engine's events, in its order, without gap where that can be had.

    Args:
        endpoint: what the engine binds; it may bind later, or again.
        rank: data-parallel rank of the engine.
        replay: whom to ask for missed events. None: they are lost.
        position: how far an earlier reader got; None: begin with what is sent from now on.
        hwm: batches queued here before ZMQ drops them.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        rank: int = 0,
        replay: ReplayClient | None = None,
        position: Position | None = None,
        hwm: int = EVENTS_HWM,
    ) -> None:
        self._socket = bounded_socket(zmq.asyncio.Context.instance(), zmq.SUB, hwm)
        self._socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        connect(self._socket, endpoint, "telemetry.events_endpoint")
        self._replay = replay
        self._open_requests: dict[str, None] = {}
        self._retentions: dict[str, None] = {}
        self._is_joined = False
        self._born_at = time.monotonic()
        self._pending: tuple[str, list[Record]] | None = None
        self.rank = rank
        self.position = position
        self.num_lost = 0
        self.num_replayed = 0
        self.num_restarts = 0
        self.num_malformed = 0

    async def receive(self) -> list[Record]:
        """The next events; ``engine_joined`` and ``events_dropped`` stand where they belong.

        A malformed batch is asked for again as a gap, once the next one shows it.
        """
        while self._pending is None:
            frames: list[bytes] = await self._socket.recv_multipart()
            try:
                _, told, _, payload = frames
                batch, instance = decode_batch(payload), told.decode()
            except (CodecError, ValueError):
                self.num_malformed += 1
                continue
            if batch:
                self._pending = (instance, batch)
        return await self._up_to(*self._pending)

    def mark(self, now: float) -> ev.EngineJoined | None:
        """Where the stream stands, for a reader of the log; None before the first event."""
        if self.position is None or not self._is_joined:
            return None
        instance, seq = self.position
        return ev.EngineJoined(
            time=now, instance=instance, engine_rank=self.rank, first_seq=seq + 1, is_restart=False
        )

    async def _up_to(self, instance: str, batch: Sequence[Record]) -> list[Record]:
        """The next events of an instance, as far as this batch at most."""
        out: list[Record] = []
        if self.position is None or not self._is_joined or self.position.instance != instance:
            first = await self._since_born(instance, batch[0].seq)
            out.append(self._join(instance, first, batch[0].event.time))
        assert self.position is not None
        end = batch[0].seq - 1
        fetched = await self._missed(instance, self.position.seq + 1, end)
        is_whole = not fetched or fetched[-1].seq >= end
        self._pending = None if is_whole else self._pending
        for record in (*fetched, *(batch if is_whole else ())):
            out += self._next(record)
        return out

    async def _since_born(self, instance: str, first: int) -> int:
        """Where a reader without a position begins: at what was sent since it connected."""
        if self.position is not None or self._replay is None or first == 1:
            return first
        early, _ = await self._replay.fetch(instance, max(1, first - REPLAY_CHUNK), first - 1)
        return min((r.seq for r in early if r.event.time >= self._born_at), default=first)

    async def _missed(self, instance: str, start: int, end: int) -> list[Record]:
        """The first events from ``start`` to ``end`` that can be had again; maybe not all."""
        for _ in range(REPLAY_ATTEMPTS):
            if start > end or self._replay is None:
                break
            chunk_end = min(end, start + REPLAY_CHUNK - 1)
            fetched, oldest = await self._replay.fetch(instance, start, chunk_end)
            if fetched:
                self.num_replayed += len(fetched)
                return fetched
            if oldest <= start:
                break
            start = oldest
        return []

    def _join(self, instance: str, first: int, now: float) -> Record:
        """Begin with an instance: where it was left, at its first event, or here."""
        known = self.position
        is_restart = known is not None and known.instance != instance
        if known is None:
            self.position = Position(instance, first - 1)
        elif is_restart:
            self.num_restarts += 1
            self.position = Position(instance, 0)
        assert self.position is not None
        joined = ev.EngineJoined(
            time=now,
            instance=instance,
            engine_rank=self.rank,
            first_seq=self.position.seq + 1,
            is_restart=is_restart,
            lost_requests=tuple(self._open_requests) if is_restart else (),
            lost_retentions=tuple(self._retentions) if is_restart else (),
        )
        if is_restart:
            self._open_requests.clear()
            self._retentions.clear()
        self._is_joined = True
        return Record(self.position.seq, "gateway", joined)

    def _next(self, record: Record) -> Iterator[Record]:
        """The record, unless it was read already; before it, what is lost."""
        assert self.position is not None
        instance, seq = self.position
        if record.seq <= seq:
            return
        if lost := record.seq - seq - 1:
            self.num_lost += lost
            source = source_of_rank(self.rank)
            dropped = ev.EventsDropped(time=record.event.time, count=lost, source=source)
            yield Record(record.seq - 1, source, dropped)
        self.position = Position(instance, record.seq)
        self._watch(record.event)
        yield record

    def _watch(self, event: ev.Event) -> None:
        """Remember what would be lost with the engine."""
        match event:
            case ev.TurnSubmitted():
                _remember(self._open_requests, event.request_id)
            case ev.TurnFinished():
                self._open_requests.pop(event.request_id, None)
            case ev.KvRetained():
                _remember(self._retentions, event.session_id)
            case ev.KvReleased():
                self._retentions.pop(event.session_id, None)
            case _:
                pass

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        if self._replay is not None:
            self._replay.close()


def _remember(names: dict[str, None], name: str) -> None:
    names[name] = None
    if len(names) > MAX_WATCHED:
        del names[next(iter(names))]


class ControlSender:
    """Sends commands to the engine; drops and counts when the engine does not read.

    Args:
        endpoint: what the engine binds; it may bind later.
        hwm: commands queued before they are dropped.
    """

    def __init__(self, endpoint: str, *, hwm: int = COMMANDS_HWM) -> None:
        self._socket: Any = bounded_socket(zmq.Context.instance(), zmq.DEALER, hwm)
        connect(self._socket, endpoint, "telemetry.control_endpoint")
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
