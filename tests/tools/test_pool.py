# SPDX-License-Identifier: Apache-2.0
"""The pool keeps to its slots and its policy, reports every call once, and survives hogs."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mars.core.events import Event, HostSampled, ToolFinished, ToolQueued, ToolStarted
from mars.core.model import Session, ToolCall
from mars.core.policy import BaseToolPolicy, Rank, UnknownPolicyError
from mars.core.toolqueue.shortest import Shortest
from mars.tools.pool import ToolPool
from mars.tools.process import ToolRunner
from tools.conftest import limits, shell
from tools.test_disk import FILL, floor_of
from tools.test_process import EAT


class LastFirst(BaseToolPolicy):
    """The opposite of FIFO, so that obeying it shows."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.finished: list[ToolCall] = []

    def rank(self, call: ToolCall, session: Session, now: float) -> Rank:
        return (-float(call.tool_call_id),)

    def on_finish(self, call: ToolCall, now: float) -> None:
        self.finished.append(call)

    def on_session_end(self, session_id: str, now: float) -> None:
        self.ended.append(session_id)


class Log(list[Event]):
    """The events, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def append(self, event: Event) -> None:
        super().append(event)
        self._news.set()

    async def next(self) -> None:
        """Until there is one more."""
        self._news.clear()
        await asyncio.wait_for(self._news.wait(), timeout=60)

    async def seen(self, kind: type[Event], tool_call_id: str) -> None:
        while tool_call_id not in of(kind, self):
            await self.next()


@pytest.fixture
def events() -> Log:
    return Log()


@pytest.fixture
async def pool(events: Log, runner: ToolRunner) -> AsyncIterator[ToolPool]:
    async with ToolPool(1, emit=events.append, runner=runner) as made:
        yield made


def of(kind: type[Event], events: list[Event]) -> list[str]:
    return [e.tool_call_id for e in events if isinstance(e, kind)]  # type: ignore[attr-defined]


class Gate:
    """A tool that runs until it is let go, and says when it has begun."""

    def __init__(self, folder: Path, name: str) -> None:
        self._begun, self._go = folder / f"{name}-begun", folder / f"{name}-go"
        os.mkfifo(self._begun)
        os.mkfifo(self._go)
        self.script = f"echo x > {self._begun}; read -r _ < {self._go}"

    async def begun(self) -> None:
        await asyncio.to_thread(self._begun.read_text)

    async def open(self) -> None:
        await asyncio.to_thread(self._go.write_text, "x\n")


async def test_each_call_is_queued_started_and_finished_once(pool: ToolPool, events: Log) -> None:
    calls = [shell(f"exit {i}", tool_call_id=str(i)) for i in range(5)]
    results = await asyncio.gather(*map(pool.run, calls))
    assert [r.exit_code for r in results] == [0, 1, 2, 3, 4]
    for kind in (ToolQueued, ToolStarted, ToolFinished):
        assert of(kind, events) == ["0", "1", "2", "3", "4"]
    finished = [e for e in events if isinstance(e, ToolFinished)]
    assert [e.exit_code for e in finished] == [0, 1, 2, 3, 4]
    assert all(e.session_id == "s1" and e.cpu_seconds > 0 for e in finished)


async def test_events_name_the_command_so_that_its_time_can_be_learned(
    pool: ToolPool, events: Log
) -> None:
    await pool.run(shell("cd / && FOO=1 ls -l"))
    assert {e.tool_name for e in events if isinstance(e, ToolQueued)} == {"bash:ls"}


async def test_no_more_tools_run_than_there_are_slots(
    runner: ToolRunner, events: Log, tmp_path: Path
) -> None:
    gates = [Gate(tmp_path, str(i)) for i in range(3)]
    async with ToolPool(2, emit=events.append, runner=runner) as pool:
        running = [
            asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id=str(i))))
            for i, gate in enumerate(gates)
        ]
        await gates[0].begun()
        await gates[1].begun()
        load = pool.load()
        assert (load.tools_running, load.tools_queued) == (2, 1)
        await gates[1].open()
        await gates[2].begun()
        await gates[0].open()
        await gates[2].open()
        await asyncio.gather(*running)
    assert of(ToolStarted, events) == ["0", "1", "2"]
    assert of(ToolFinished, events)[0] == "1"


async def test_the_policy_orders_the_queue_and_learns_from_what_ended(
    runner: ToolRunner, events: Log
) -> None:
    policy = LastFirst()
    async with ToolPool(1, policy, events.append, runner=runner) as pool:
        await asyncio.gather(*(pool.run(shell("true", tool_call_id=str(i))) for i in range(4)))
    assert of(ToolStarted, events) == ["0", "3", "2", "1"]
    assert [c.tool_call_id for c in policy.finished] == ["0", "3", "2", "1"]
    assert all(c.finished_at is not None for c in policy.finished)


async def test_a_cancelled_call_leaves_the_queue_and_does_not_take_a_slot(
    pool: ToolPool, events: Log, tmp_path: Path
) -> None:
    gate = Gate(tmp_path, "first")
    first = asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id="first")))
    await gate.begun()
    second = asyncio.ensure_future(pool.run(shell("true", tool_call_id="second")))
    third = asyncio.ensure_future(pool.run(shell("true", tool_call_id="third")))
    await events.seen(ToolQueued, "third")
    second.cancel()
    await gate.open()
    assert (await third).exit_code == 0
    assert (await first).exit_code == 0
    assert second.cancelled()
    assert of(ToolStarted, events) == ["first", "third"]
    assert sorted(of(ToolFinished, events)) == ["first", "second", "third"]
    assert pool.load().tools_running == 0


async def test_cancelling_a_running_call_frees_its_slot(
    pool: ToolPool, events: Log, tmp_path: Path
) -> None:
    gate = Gate(tmp_path, "first")
    first = asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id="first")))
    await gate.begun()
    first.cancel()
    assert (await pool.run(shell("true", tool_call_id="second"))).exit_code == 0
    assert sorted(of(ToolFinished, events)) == ["first", "second"]


async def test_closing_kills_what_runs_and_what_waits(
    runner: ToolRunner, events: Log, tmp_path: Path
) -> None:
    gate = Gate(tmp_path, "first")
    async with ToolPool(1, emit=events.append, runner=runner) as pool:
        calls = [
            asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id=str(i))))
            for i in range(2)
        ]
        await gate.begun()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(e) for e in ended] == [asyncio.CancelledError] * 2
    assert sorted(of(ToolFinished, events)) == ["0", "1"]
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(shell("true"))


async def test_the_host_is_sampled_with_the_state_of_the_queue(pool: ToolPool, events: Log) -> None:
    await pool.run(shell("true"))
    sample = next(e for e in events if isinstance(e, HostSampled))
    assert sample.tool_slots == 1
    assert sample.cpu_cores >= 1
    assert 0.0 <= sample.cpu_usage <= 1.0
    assert sample.memory_bytes_free is not None


async def test_a_queue_that_does_not_move_does_not_look_short(
    events: Log, runner: ToolRunner, tmp_path: Path
) -> None:
    now = 0.0
    gate = Gate(tmp_path, "first")
    pool = ToolPool(1, emit=events.append, runner=runner, clock=lambda: now)
    try:
        first = asyncio.ensure_future(pool.run(shell(gate.script)))
        await gate.begun()
        second = asyncio.ensure_future(pool.run(shell("true", tool_call_id="c2")))
        await events.seen(ToolQueued, "c2")
        now = 60.0
        assert pool.load().tool_queue_delay_s == 60.0
        await gate.open()
        await asyncio.gather(first, second)
        assert pool.load().tool_queue_delay_s == pytest.approx(12.0)
        assert (await second).queued_s == 60.0
    finally:
        await pool.close()


async def test_a_policy_moves_the_slots(runner: ToolRunner, tmp_path: Path) -> None:
    class Two(BaseToolPolicy):
        def slots(self, load: object, now: float) -> int | None:
            return 2

    gates = [Gate(tmp_path, "a"), Gate(tmp_path, "b")]
    async with ToolPool(1, Two(), runner=runner, sample_interval_s=0.01) as pool:
        calls = [
            asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id=str(i))))
            for i, gate in enumerate(gates)
        ]
        for gate in gates:
            await gate.begun()
        for gate in gates:
            await gate.open()
        await asyncio.gather(*calls)


async def test_a_call_that_is_surely_short_does_not_wait_for_the_long_ones(
    runner: ToolRunner, events: Log, tmp_path: Path
) -> None:
    policy = Shortest()
    for _ in range(50):
        policy.estimator.observe("bash:true", 0.01)
    gate = Gate(tmp_path, "long")
    async with ToolPool(1, policy, events.append, runner=runner) as pool:
        long = asyncio.ensure_future(pool.run(shell(gate.script, tool_call_id="long")))
        await gate.begun()
        unknown = asyncio.ensure_future(pool.run(shell("sort", tool_call_id="unknown")))
        await events.seen(ToolQueued, "unknown")
        assert (await pool.run(shell("true", tool_call_id="short"))).exit_code == 0
        assert of(ToolStarted, events) == ["long", "short"]
        await gate.open()
        await asyncio.gather(long, unknown)


async def test_an_ended_session_is_forgotten_by_the_policy(runner: ToolRunner) -> None:
    policy = LastFirst()
    async with ToolPool(1, policy, runner=runner) as pool:
        await pool.run(shell("true", tool_call_id="1"))
        pool.end_session("s1")
        pool.end_session("never seen")
    assert policy.ended == ["s1"]


TIMED_OUT = "stopped after its timeout of 2 s"
HOGS = {
    "never ends": ("sleep 1000", TIMED_OUT),
    "ignores SIGTERM": ("trap '' TERM; while :; do sleep 1; done", TIMED_OUT),
    "floods": ("yes", "bytes of output left out here"),
    "forks away": ("setsid sleep 1000 >&- 2>&- & exit 0", "left in the background were stopped"),
    "fork bomb": ("for i in 1 2 3 4 5 6 7 8; do setsid sleep 99 & done; sleep 99", TIMED_OUT),
    "burns": ("while :; do :; done", TIMED_OUT),
    "eats memory": (f'exec {sys.executable} -ISc "{EAT}"', "may use 64 MiB"),
    "fills the disk": (FILL, "the disk is nearly full"),
}
"""What tools do, and what their agent is told of it."""


async def test_light_sessions_are_served_beside_every_kind_of_hog(
    runner: ToolRunner, tmp_path: Path
) -> None:
    bounds = {"output_bytes": 1000, "memory_bytes": 64 << 20}
    full = {**bounds, "disk_floor_bytes": floor_of(tmp_path)}
    async with ToolPool(len(HOGS) + 1, "shortest", runner=runner) as pool:
        hogs = [
            pool.run(
                shell(
                    script,
                    session_id=name,
                    tool_call_id=name,
                    timeout_s=2.0,
                    grace_s=0.2,
                    cwd=str(tmp_path),
                    limits=limits(**(full if script == FILL else bounds)),
                )
            )
            for name, (script, _) in HOGS.items()
        ]
        light = [
            pool.run(shell(f"echo {i}", session_id="light", tool_call_id=str(i))) for i in range(20)
        ]
        results = await asyncio.gather(*hogs, *light)
    for (name, (_, words)), result in zip(HOGS.items(), results, strict=False):
        assert words.encode() in result.stdout + result.stderr, name
    assert [r.stdout for r in results[len(HOGS) :]] == [f"{i}\n".encode() for i in range(20)]


@pytest.mark.parametrize("policy", ["fifo", "shortest"])
async def test_an_agent_that_never_ends_leaves_room_for_others(
    policy: str, runner: ToolRunner
) -> None:
    async with ToolPool(1, policy, runner=runner) as pool:

        async def loop_for_ever(session_id: str) -> None:
            for number in itertools.count():
                call = shell("true", session_id=session_id, tool_call_id=f"{session_id}-{number}")
                await pool.run(call)

        endless = [asyncio.create_task(loop_for_ever(f"endless-{i}")) for i in range(3)]
        for number in range(3):
            call = shell("echo ok", session_id="light", tool_call_id=f"light-{number}")
            assert (await pool.run(call)).stdout == b"ok\n"
        assert not any(task.done() for task in endless)
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="slots"):
        ToolPool(0)
    with pytest.raises(UnknownPolicyError, match="fifo"):
        ToolPool(1, "lifo")
