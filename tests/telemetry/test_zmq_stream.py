# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from mars.core.events import Event, EventsDropped, ToolQueued
from mars.telemetry.codec import Record, encode_batch
from mars.telemetry.zmq_stream import (
    ControlReceiver,
    ControlSender,
    EventPublisher,
    EventSubscriber,
    GapCounter,
    StreamError,
)

TIMEOUT_S = 20.0


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/events"


def queued(i: int) -> ToolQueued:
    return ToolQueued(time=float(i), session_id="s", tool_call_id=f"c{i}", tool_name="bash")


async def joined(publisher: EventPublisher, subscriber: EventSubscriber) -> None:
    """Publish until the subscriber hears something: PUB forgets what nobody hears."""
    async with asyncio.timeout(TIMEOUT_S):
        heard = asyncio.ensure_future(subscriber.receive())
        while not heard.done():
            publisher.send([queued(0)])
            await asyncio.wait((heard,), timeout=0.02)


async def test_batches_arrive_whole_and_in_order(endpoint: str) -> None:
    publisher, subscriber = EventPublisher(endpoint), EventSubscriber(endpoint)
    try:
        await joined(publisher, subscriber)
        publisher.send([queued(1), queued(2)])
        publisher.send([])
        publisher.send([queued(3)])
        got: list[Event] = []
        async with asyncio.timeout(TIMEOUT_S):
            while queued(3) not in got:
                got += [r.event for r in await subscriber.receive()]
        assert [e for e in got if e != queued(0)] == [queued(1), queued(2), queued(3)]
        assert subscriber.num_lost == 0
    finally:
        publisher.close()
        subscriber.close()


async def test_a_gap_is_reported_with_its_size_and_a_bad_batch_does_not_stop_the_stream(
    endpoint: str,
) -> None:
    subscriber = EventSubscriber(endpoint)
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.bind(endpoint)
    try:
        await asyncio.to_thread(socket.recv)  # the subscription has arrived
        for batch in ([1, 2], [7]):
            records = [Record(seq, "engine", queued(seq)) for seq in batch]
            socket.send_multipart([b"mars", batch[0].to_bytes(8, "big"), encode_batch(records)])
            socket.send_multipart([b"mars", b"garbage", b"\xc1"])
        async with asyncio.timeout(TIMEOUT_S):
            first, second = await subscriber.receive(), await subscriber.receive()
        assert [r.seq for r in first] == [1, 2]
        assert second[0].event == EventsDropped(time=7.0, count=4, source="engine")
        assert second[1].event == queued(7)
        assert (subscriber.num_lost, subscriber.num_malformed) == (4, 1)
    finally:
        subscriber.close()
        socket.close(linger=0)
        context.term()


def test_a_writer_that_starts_again_is_no_gap() -> None:
    gaps = GapCounter()
    assert gaps.lost_before(5, 9) == 0
    assert gaps.lost_before(12, 12) == 2
    assert gaps.lost_before(1, 3) == 0
    assert gaps.lost_before(4, 4) == 0


@pytest.fixture
def receiver(endpoint: str) -> Iterator[ControlReceiver]:
    receiver = ControlReceiver(endpoint)
    yield receiver
    receiver.close()


def poll_until(receiver: ControlReceiver, count: int) -> list[dict[str, object]]:
    got: list[dict[str, object]] = []
    for _ in range(2000):
        got += receiver.poll()
        if len(got) >= count:
            break
        receiver._socket.poll(timeout=10)
    return got


def test_commands_arrive_in_order_and_nonsense_is_counted(
    endpoint: str, receiver: ControlReceiver
) -> None:
    sender = ControlSender(endpoint)
    sender.send("session_end", session_id="s")
    sender._socket.send(b"\xc1")
    sender._socket.send(msgspec.msgpack.encode([1]))
    sender.send("tool_finished", session_id="s", time=1.0)
    assert poll_until(receiver, 2) == [
        {"op": "session_end", "session_id": "s"},
        {"op": "tool_finished", "session_id": "s", "time": 1.0},
    ]
    assert receiver.num_malformed == 2
    sender.close()


def test_polling_an_empty_channel_returns_at_once(receiver: ControlReceiver) -> None:
    assert list(receiver.poll()) == []


def test_a_sender_nobody_reads_drops_and_counts(endpoint: str) -> None:
    sender = ControlSender(endpoint, hwm=5)
    for _ in range(20):
        sender.send("session_end", session_id="s")
    assert sender.num_dropped == 15
    sender.close()


def test_an_endpoint_that_cannot_be_bound_names_the_setting() -> None:
    with pytest.raises(StreamError, match="engine.events_endpoint"):
        EventPublisher("ipc:///no/such/folder/events")
