# SPDX-License-Identifier: Apache-2.0
"""The engine's link: its thread hears and answers whatever the engine's own thread does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mars.config import EngineConfig
from mars.core.events import EngineSampled, ToolQueued
from mars.telemetry.engine_link import EngineLink
from mars.telemetry.subscriber import ControlSender, EventSubscriber, ReplayClient

TIMEOUT_S = 20.0
IDLE = EngineSampled(
    time=0.0,
    kv_blocks_total=10,
    kv_blocks_free=10,
    kv_blocks_retained=0,
    block_size=16,
    num_running=0,
    num_waiting=0,
    num_steps=0,
    busy_s=0.0,
    computed_tokens=0,
    recomputed_tokens=0,
    prefix_queries_tokens=0,
    prefix_hits_tokens=0,
    preemptions=0,
    shrunk_chunks=0,
)
EVENT = ToolQueued(time=1.0, session_id="s", tool_call_id="c", tool_name="bash")


def config(folder: Path) -> EngineConfig:
    return EngineConfig(
        events_endpoint=f"ipc://{folder}/events",
        control_endpoint=f"ipc://{folder}/control",
        sample_interval_s=0.02,
    )


@pytest.fixture
def link(tmp_path: Path) -> Iterator[EngineLink]:
    made = EngineLink(config(tmp_path))
    yield made
    made.close()


@pytest.fixture
async def subscriber(tmp_path: Path) -> AsyncIterator[EventSubscriber]:
    made = EventSubscriber(
        f"ipc://{tmp_path}/events", replay=ReplayClient(f"ipc://{tmp_path}/control")
    )
    yield made
    made.close()


async def samples(subscriber: EventSubscriber, count: int) -> list[EngineSampled]:
    """The next samples."""
    got: list[EngineSampled] = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(got) < count:
            records = await subscriber.receive()
            got += [r.event for r in records if isinstance(r.event, EngineSampled)]
    return got


async def test_commands_wait_for_the_next_request_while_the_engine_sleeps(
    tmp_path: Path, link: EngineLink
) -> None:
    sender = ControlSender(f"ipc://{tmp_path}/control")
    try:
        sender.send("session_end", session_id="a")
        sender.send("session_end", session_id="b")
        got: list[str] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(got) < 2:
                got += [message["session_id"] for message in link.commands()]
                await asyncio.sleep(0.005)
        assert got == ["a", "b"]
        assert list(link.commands()) == []
    finally:
        sender.close()


async def test_an_idle_engine_repeats_its_sample_with_the_present_time(
    link: EngineLink, subscriber: EventSubscriber
) -> None:
    link.emit(IDLE)
    link.flush()
    first, second = (await samples(subscriber, 3))[-2:]
    assert second.time > first.time > 0.0
    assert replace(first, time=0.0) == IDLE


def test_an_engine_stuck_in_a_step_falls_silent(tmp_path: Path) -> None:
    link = EngineLink(config(tmp_path), hung_s=0.0)
    try:
        publisher = link._publisher
        assert publisher is not None
        link.emit(replace(IDLE, num_running=1))
        link.flush()
        told = publisher._next_seq
        link._beat(0.0)  # what the thread does each interval
        assert publisher._next_seq == told
        link.emit(IDLE)
        link.flush()
        told = publisher._next_seq
        link._beat(0.0)
        assert publisher._next_seq > told
    finally:
        link.close()


async def test_events_of_a_rank_carry_it(tmp_path: Path) -> None:
    link = EngineLink(config(tmp_path), rank=2)
    subscriber = EventSubscriber(f"ipc://{tmp_path}/events.2", rank=2)
    try:
        link.emit(IDLE)
        link.flush()
        async with asyncio.timeout(TIMEOUT_S):
            records = await subscriber.receive()
        assert {record.source for record in records} == {"gateway", "engine.2"}
        assert [getattr(record.event, "engine_rank", None) for record in records] == [2, 2]
    finally:
        subscriber.close()
        link.close()


async def test_what_was_dropped_is_replayed_while_the_engine_sleeps(
    link: EngineLink, subscriber: EventSubscriber
) -> None:
    link.emit(IDLE)
    link.flush()
    await samples(subscriber, 1)
    publisher = link._publisher
    assert publisher is not None
    with link._lock:  # numbered and kept, but delivered to nobody
        publisher.ring.keep(publisher._next_seq, publisher._next_seq, _encoded(publisher._next_seq))
        publisher._next_seq += 1
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            records = await subscriber.receive()
            if any(record.event == EVENT for record in records):
                break
    assert (subscriber.num_replayed, subscriber.num_lost) == (1, 0)


def _encoded(seq: int) -> bytes:
    from mars.telemetry.codec import Record, encode_batch

    return encode_batch([Record(seq, "engine", EVENT)])


def test_without_endpoints_nothing_is_sent_or_heard() -> None:
    link = EngineLink(EngineConfig())
    link.emit(EVENT)
    link.flush()
    assert not link.is_listening
    assert list(link.commands()) == []
    link.close()
