# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading

import pytest

from mars.core.events import Event, EventsDropped
from mars.telemetry.bus import Bus


def events(count: int) -> list[Event]:
    return [Event(time=float(i)) for i in range(count)]


def test_records_are_numbered_in_order_and_every_reader_gets_all() -> None:
    bus = Bus(capacity=10)
    one, two = bus.reader(), bus.reader()
    bus.publish_many(events(5), "engine")
    assert [r.seq for r in one.read()] == [1, 2, 3, 4, 5]
    assert [r.event.time for r in two.read(limit=2)] == [0.0, 1.0]
    assert [r.event.time for r in two.read()] == [2.0, 3.0, 4.0]
    assert two.read() == []


def test_a_slow_reader_learns_how_much_it_lost_and_the_writer_never_waits() -> None:
    bus = Bus(capacity=4)
    slow = bus.reader()
    bus.publish_many(events(10), "engine")
    got = slow.read()
    assert got[0].event == EventsDropped(time=6.0, count=6, source="bus")
    assert [r.seq for r in got[1:]] == [7, 8, 9, 10]
    assert slow.num_dropped == bus.num_dropped == 6


def test_a_reader_at_the_rings_edge_lost_nothing() -> None:
    bus = Bus(capacity=4)
    reader = bus.reader()
    bus.publish_many(events(4), "engine")
    assert [r.seq for r in reader.read()] == [1, 2, 3, 4]
    assert bus.num_dropped == 0


@pytest.mark.parametrize(("since", "first"), [(0, 1), (2, 3), (None, None), (99, None)])
def test_since_says_where_a_reader_begins(since: int | None, first: int | None) -> None:
    bus = Bus(capacity=10)
    bus.publish_many(events(5), "engine")
    got = bus.reader(since).read()
    assert (got[0].seq if got else None) == first


def test_threads_share_one_gapless_numbering() -> None:
    bus = Bus(capacity=5000)
    reader = bus.reader()
    threads = [
        threading.Thread(target=bus.publish_many, args=(events(1000), f"t{i}")) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = reader.read(limit=5000)
    assert [r.seq for r in got] == list(range(1, 4001))
    for i in range(4):
        times = [r.event.time for r in got if r.source == f"t{i}"]
        assert times == sorted(times)


async def test_a_waiting_reader_is_woken_from_another_thread() -> None:
    bus = Bus()
    reader = bus.reader()
    waiting = asyncio.create_task(reader.wait())
    await asyncio.sleep(0)
    await asyncio.to_thread(bus.publish, Event(time=1.0), "engine")
    await waiting
    assert len(reader.read()) == 1


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    bus = Bus()
    waiting = asyncio.create_task(bus.reader().wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert bus._waiting == []


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Bus(capacity=0)


def test_numbering_goes_on_from_an_earlier_life() -> None:
    bus = Bus(capacity=10, last_seq=41)
    reader = bus.reader(since=10)  # from before: those records are in the log, not here
    assert bus.publish(Event(time=1.0), "gateway").seq == 42
    got = reader.read()
    assert [r.seq for r in got[1:]] == [42]
    assert got[0].event == EventsDropped(time=1.0, count=31, source="bus")
