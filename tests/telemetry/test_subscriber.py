# SPDX-License-Identifier: Apache-2.0
"""The control plane's end: gaps are fetched again, restarts recognised, losses told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mars.core.events import EngineJoined, Event, EventsDropped, KvRetained, ToolQueued
from mars.core.events import TurnSubmitted as Submitted
from mars.telemetry.codec import Record
from mars.telemetry.subscriber import EventSubscriber, Position, ReplayClient
from mars.telemetry.zmq_stream import ControlReceiver, EventPublisher, Ring

TIMEOUT_S = 20.0


def queued(i: int) -> ToolQueued:
    return ToolQueued(time=float(i), session_id="s", tool_call_id=f"c{i}", tool_name="bash")


class Engine:
    """The engine's two sockets, its control channel served by a thread as in the engine."""

    def __init__(self, folder: Path, ring: Ring | None = None) -> None:
        self.publisher = EventPublisher(f"ipc://{folder}/events", ring=ring)
        self._receiver = ControlReceiver(f"ipc://{folder}/control", publisher=self.publisher)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._receiver.wait(0.02)
            list(self._receiver.poll())
        self._receiver.close()

    def unheard(self, *events: Event) -> None:
        """Events that no queue delivers: numbered and kept, but not sent."""
        socket, self.publisher._socket = self.publisher._socket, Deaf()
        self.publisher.send(events)
        self.publisher._socket = socket

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.publisher.close()


class Deaf:
    """A socket whose queue is full."""

    def send_multipart(self, *_: Any, **__: Any) -> None:
        pass


class Listener:
    """A subscriber and everything it got."""

    def __init__(
        self, folder: Path, position: Position | None = None, *, replays: bool = True
    ) -> None:
        replay = ReplayClient(f"ipc://{folder}/control", timeout_s=5.0) if replays else None
        self.subscriber = EventSubscriber(
            f"ipc://{folder}/events", replay=replay, position=position
        )
        self.got: list[Record] = []

    async def hear(self, engine: Engine, event: Event) -> None:
        """Publish an event until it arrives: PUB forgets what nobody hears."""
        async with asyncio.timeout(TIMEOUT_S):
            heard = asyncio.ensure_future(self.until(lambda r: r.event == event))
            while not heard.done():
                engine.publisher.send([event])
                await asyncio.wait((heard,), timeout=0.02)

    async def until(self, wanted: Callable[[Record], bool]) -> None:
        """Receive until such a record is there."""
        async with asyncio.timeout(TIMEOUT_S):
            while not any(wanted(record) for record in self.got):
                self.got += await self.subscriber.receive()

    def seqs(self) -> list[int]:
        """Numbers of the engine's own events."""
        return [r.seq for r in self.got if r.event.kind == "tool_queued"]

    def events(self, kind: str) -> list[Any]:
        return [r.event for r in self.got if r.event.kind == kind]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    made = Listener(tmp_path)
    yield made
    made.subscriber.close()


def whole(seqs: list[int]) -> bool:
    """Whether numbers follow one another, none twice."""
    return seqs == list(range(seqs[0], seqs[0] + len(seqs)))


async def test_batches_arrive_whole_and_in_order(engine: Engine, listener: Listener) -> None:
    await listener.hear(engine, queued(0))
    engine.publisher.send([queued(1), queued(2)])
    engine.publisher.send([])
    engine.publisher.send([queued(3)])
    await listener.until(lambda r: r.event == queued(3))
    events = [r.event for r in listener.got if r.event != queued(0)]
    assert events[1:] == [queued(1), queued(2), queued(3)]
    assert isinstance(events[0], EngineJoined)
    assert not events[0].is_restart
    assert whole(listener.seqs())


async def test_what_a_full_queue_dropped_is_fetched_again(
    engine: Engine, listener: Listener
) -> None:
    await listener.hear(engine, queued(0))
    engine.unheard(*[queued(i) for i in range(1, 6)])
    engine.unheard(queued(6))
    engine.publisher.send([queued(7)])
    await listener.until(lambda r: r.event == queued(7))
    assert whole(listener.seqs())
    assert [e.tool_call_id for e in listener.events("tool_queued")][-7:] == [
        f"c{i}" for i in range(1, 8)
    ]
    assert (listener.subscriber.num_replayed, listener.subscriber.num_lost) == (6, 0)
    assert listener.events("events_dropped") == []


async def test_a_long_replay_comes_in_pieces(
    engine: Engine, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mars.telemetry.subscriber.REPLAY_CHUNK", 4)
    await listener.hear(engine, queued(0))
    for i in range(1, 11):
        engine.unheard(queued(i), queued(100 + i))
    engine.publisher.send([queued(11)])
    largest = 0
    async with asyncio.timeout(TIMEOUT_S):
        while listener.got[-1].event != queued(11):
            records = await listener.subscriber.receive()
            largest = max(largest, len(records))
            listener.got += records
    assert whole(listener.seqs())
    assert largest <= 5
    assert listener.subscriber.num_replayed == 20


async def test_only_what_the_engine_keeps_no_more_is_reported_lost(tmp_path: Path) -> None:
    engine, listener = Engine(tmp_path, Ring(max_batches=3)), Listener(tmp_path)
    try:
        await listener.hear(engine, queued(0))
        for i in range(1, 7):
            engine.unheard(queued(i))
        engine.publisher.send([queued(7)])
        await listener.until(lambda r: r.event == queued(7))
        assert [e.tool_call_id for e in listener.events("tool_queued")][-3:] == ["c5", "c6", "c7"]
        assert listener.events("events_dropped") == [
            EventsDropped(time=5.0, count=4, source="engine")
        ]
        assert listener.subscriber.num_lost == 4
    finally:
        listener.subscriber.close()
        engine.close()


async def test_without_a_control_endpoint_a_gap_is_lost_and_told(
    engine: Engine, tmp_path: Path
) -> None:
    listener = Listener(tmp_path, replays=False)
    try:
        await listener.hear(engine, queued(0))
        engine.unheard(queued(1), queued(2))
        engine.publisher.send([queued(3)])
        await listener.until(lambda r: r.event == queued(3))
        assert [e.count for e in listener.events("events_dropped")] == [2]
    finally:
        listener.subscriber.close()


async def test_a_malformed_batch_does_not_stop_the_stream(
    engine: Engine, listener: Listener
) -> None:
    await listener.hear(engine, queued(0))
    engine.publisher._socket.send_multipart([b"mars", b"x", b"12345678", b"\xc1"])
    engine.publisher._socket.send_multipart([b"mars", b"garbage"])
    engine.publisher.send([queued(1)])
    await listener.until(lambda r: r.event == queued(1))
    assert listener.subscriber.num_malformed == 2
    assert whole(listener.seqs())


async def test_an_engine_that_starts_again_is_recognised_with_what_died_in_it(
    tmp_path: Path, listener: Listener
) -> None:
    first = Engine(tmp_path)
    await listener.hear(first, queued(0))
    first.publisher.send(
        [
            Submitted(
                time=1.0,
                session_id="s",
                request_id="r1",
                turn_index=0,
                num_prompt_tokens=1,
                projected_kv_blocks=1,
            ),
            KvRetained(time=1.0, session_id="t", num_blocks=3, value=1.0),
        ]
    )
    await listener.until(lambda r: r.event.kind == "kv_retained")
    first.close()
    second = Engine(tmp_path)
    try:
        second.unheard(queued(10))  # before anybody listened
        await listener.hear(second, queued(11))
        joined = listener.events("engine_joined")[-1]
        assert joined.is_restart
        assert (joined.lost_requests, joined.lost_retentions) == (("r1",), ("t",))
        assert joined.first_seq == 1
        assert queued(10) in listener.events("tool_queued")
        assert listener.events("events_dropped") == []
        assert listener.subscriber.num_restarts == 1
    finally:
        second.close()


async def test_a_reader_that_starts_again_goes_on_where_it_stopped(
    engine: Engine, tmp_path: Path, listener: Listener
) -> None:
    await listener.hear(engine, queued(0))
    position = listener.subscriber.position
    assert position is not None
    mark = listener.subscriber.mark(5.0)
    assert mark is not None
    assert (mark.instance, mark.first_seq) == (position.instance, position.seq + 1)
    for i in range(1, 4):
        engine.unheard(queued(i))  # nobody was there
    later = Listener(tmp_path, position)
    try:
        await later.hear(engine, queued(4))
        assert later.seqs()[0] == position.seq + 1
        assert whole(later.seqs())
        assert later.events("tool_queued")[:3] == [queued(1), queued(2), queued(3)]
    finally:
        later.subscriber.close()


async def test_a_new_reader_gets_what_was_sent_before_its_subscription_arrived(
    engine: Engine, listener: Listener
) -> None:
    now = time.monotonic()
    engine.unheard(queued(1))  # long before
    early = ToolQueued(time=now, session_id="s", tool_call_id="early", tool_name="bash")
    engine.unheard(early)
    await listener.hear(engine, queued(0))
    assert listener.events("tool_queued")[0] == early
    assert listener.seqs()[0] == 2
    assert whole(listener.seqs())
    assert listener.events("events_dropped") == []


async def test_a_position_of_another_instance_is_a_restart(engine: Engine, tmp_path: Path) -> None:
    engine.unheard(queued(1))
    later = Listener(tmp_path, Position("another", 500))
    try:
        await later.hear(engine, queued(2))
        assert later.events("engine_joined")[0].is_restart
        assert later.events("tool_queued")[0] == queued(1)
        assert later.events("events_dropped") == []
    finally:
        later.subscriber.close()
