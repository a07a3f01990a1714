# SPDX-License-Identifier: Apache-2.0
"""Tools in virtual time: slots, order, and cores shared when there are too few."""

import pytest

from mars.core.events import Event, ToolFinished, ToolStarted
from mars.core.model import Load, Session, ToolCall
from mars.core.policy import BaseToolPolicy, Rank, ToolPolicy
from mars.sim.host import EXPRESS_SHARE, Host
from mars.sim.loop import EventLoop
from mars.tools import pool


class Bench:
    """A host on which tools are started at chosen times."""

    def __init__(self, num_cores: int, num_slots: int, policy: ToolPolicy | None = None) -> None:
        self.events = EventLoop()
        self.seen: list[Event] = []
        self.host = Host(
            self.events,
            policy or BaseToolPolicy(),
            num_cores=num_cores,
            num_slots=num_slots,
            emit=self.seen.append,
            load=lambda now: Load(sampled_at=now),
        )
        self.ended: dict[str, float] = {}

    def tool(self, name: str, at: float, duration_s: float, cpu_s: float) -> None:
        self.events.at(at, self._submit, name, duration_s, cpu_s)

    def _submit(self, name: str, duration_s: float, cpu_s: float) -> None:
        now = self.events.now
        call = ToolCall(name, f"of-{name}", name, queued_at=now, cpu_seconds=cpu_s)
        session = Session(call.session_id, arrival_time=now)
        self.host.submit(call, session, duration_s=duration_s, done=self._done)

    def _done(self, call: ToolCall) -> None:
        self.ended[call.tool_call_id] = self.events.now

    def run(self) -> dict[str, float]:
        self.events.run_due(1e9)
        return self.ended


def test_alone_a_tool_takes_what_it_took() -> None:
    bench = Bench(num_cores=4, num_slots=4)
    bench.tool("narrow", at=1.0, duration_s=3.0, cpu_s=1.5)
    bench.tool("wide", at=10.0, duration_s=5.0, cpu_s=20.0)
    bench.tool("nothing", at=20.0, duration_s=0.0, cpu_s=0.0)
    assert bench.run() == {"narrow": 4.0, "wide": 15.0, "nothing": 20.0}


def test_a_tool_recorded_on_more_cores_takes_its_cpu_time() -> None:
    bench = Bench(num_cores=2, num_slots=4)
    bench.tool("wide", at=0.0, duration_s=5.0, cpu_s=20.0)
    assert bench.run() == {"wide": 10.0}


def test_busy_tools_share_the_cores_evenly() -> None:
    bench = Bench(num_cores=1, num_slots=2)
    bench.tool("long", at=0.0, duration_s=4.0, cpu_s=4.0)
    bench.tool("short", at=1.0, duration_s=1.0, cpu_s=1.0)
    # From 1.0 on each has half a core: short ends at 3.0, long has 2.0 s left then.
    assert bench.run() == {"short": pytest.approx(3.0), "long": pytest.approx(5.0)}


def test_a_tool_that_waits_is_not_slowed_by_one_that_computes() -> None:
    bench = Bench(num_cores=1, num_slots=3)
    bench.tool("download", at=0.0, duration_s=10.0, cpu_s=1.0)
    bench.tool("build", at=0.0, duration_s=10.0, cpu_s=10.0)
    ended = bench.run()
    assert ended["download"] == pytest.approx(10.0)
    # It left a tenth of the core to the download for ten seconds.
    assert ended["build"] == pytest.approx(11.0)


def test_no_more_run_at_once_than_there_are_slots() -> None:
    bench = Bench(num_cores=8, num_slots=2)
    for index in range(5):
        bench.tool(f"t{index}", at=0.0, duration_s=1.0, cpu_s=0.1)
    assert bench.run() == {"t0": 1.0, "t1": 1.0, "t2": 2.0, "t3": 2.0, "t4": 3.0}
    waits = [e.queued_s for e in bench.seen if isinstance(e, ToolStarted)]
    assert waits == [0.0, 0.0, 1.0, 1.0, 2.0]


def test_the_policy_orders_the_queue() -> None:
    class LastNameFirst(BaseToolPolicy):
        def rank(self, call: ToolCall, session: Session, now: float) -> Rank:
            return (-float(ord(call.tool_name)),)

    bench = Bench(num_cores=1, num_slots=1, policy=LastNameFirst())
    for name in "abc":
        bench.tool(name, at=0.0, duration_s=1.0, cpu_s=0.0)
    assert list(bench.run()) == ["a", "c", "b"]


def test_integrals_and_pressure_follow_the_load() -> None:
    bench = Bench(num_cores=1, num_slots=4)
    for name in "ab":
        bench.tool(name, at=0.0, duration_s=10.0, cpu_s=10.0)
    bench.run()
    bench.host.settle()
    assert bench.host.totals.cpu_s == pytest.approx(20.0)
    assert bench.host.totals.busy_slot_s == pytest.approx(40.0)
    finished = [e for e in bench.seen if isinstance(e, ToolFinished)]
    assert [e.duration_s for e in finished] == [pytest.approx(20.0)] * 2
    pressed = Bench(num_cores=1, num_slots=4)
    for name in "ab":
        pressed.tool(name, at=0.0, duration_s=100.0, cpu_s=100.0)
    pressed.events.run_due(50.0)
    pressed.host.settle()
    assert pressed.host.totals.pressure > 0.99


def test_express_calls_pass_full_slots_as_in_the_tool_pool() -> None:
    class ShortOnesPass(BaseToolPolicy):
        def is_express(self, call: ToolCall, now: float) -> bool:
            return call.tool_name.startswith("short")

    assert EXPRESS_SHARE == pool.EXPRESS_SHARE
    bench = Bench(num_cores=4, num_slots=1, policy=ShortOnesPass())
    bench.tool("long", at=0.0, duration_s=10.0, cpu_s=0.0)
    for name in ("other", "short-1", "short-2", "short-3"):
        bench.tool(name, at=1.0, duration_s=2.0, cpu_s=0.0)
    # Two may pass on four cores; the third follows when one of them has ended.
    ended = bench.run()
    assert ended["other"] == 12.0
    assert [ended[f"short-{i}"] for i in (1, 2, 3)] == [3.0, 3.0, 5.0]


def test_slots_that_a_policy_adds_are_offered_too() -> None:
    class TwoPerCore(BaseToolPolicy):
        def slots(self, load: Load, now: float) -> int | None:
            return 4

    bench = Bench(num_cores=2, num_slots=2, policy=TwoPerCore())
    for name in "abcd":
        bench.tool(name, at=0.0, duration_s=2.0, cpu_s=0.0)
    bench.run()
    assert bench.host.totals.busy_slot_s == pytest.approx(8.0)
    assert bench.host.totals.offered_slot_s >= bench.host.totals.busy_slot_s
