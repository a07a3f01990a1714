# SPDX-License-Identifier: Apache-2.0
"""Whole experiments in virtual time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from mars.bench.result import Result, encode_result
from mars.core import events as ev
from mars.core.policy import admission_policies, scheduling_policies, tool_policies
from mars.sim.loop import StuckError
from mars.sim.policy_engine import PolicyEngine
from mars.sim.run import Machine, MakeEngine, SimConfig, simulate, simulated_engine
from mars.traces.schema import TraceSession
from sim.workloads import Shape, session

PRESSED = SimConfig(kv_tokens=24_000, num_cpus=2)
BUSY = Shape(2, num_sessions=24, rate=8.0, growth_tokens=5000, num_turns=5, shared=0.3)


def test_the_same_inputs_give_the_same_bytes() -> None:
    config = dataclasses.replace(PRESSED, policy="mars", admission="mars", tool_policy="shortest")
    once, again = (encode_result(simulate(BUSY.trace(), config)) for _ in range(2))
    assert once == again


def test_a_session_alone_takes_its_ideal_time() -> None:
    one = session(prompts=(9000, 12_000, 15_000), output=200, tool_s=2.0, gap_s=0.5)
    for is_async in (False, True):
        result = simulate([one], SimConfig(is_async=is_async))
        record = result.sessions[0]
        assert record.sct_s == pytest.approx(record.ideal_s, rel=1e-3)
        assert result.summary.slowdown_mean == pytest.approx(1.0, abs=1e-3)
        assert record.tool_s == pytest.approx(6.0)
        assert record.gap_s == pytest.approx(1.0)


@pytest.mark.parametrize("policy", ["fcfs", "mars-paper", "mars", "continuum-dynamic"])
def test_every_part_of_a_session_is_accounted_for(policy: str) -> None:
    seen: Counter[type[ev.Event]] = Counter()
    trace = BUSY.trace()
    config = dataclasses.replace(PRESSED, policy=policy, admission="cap:6")
    result = simulate(trace, config, sink=lambda event: seen.update([type(event)]))
    num_turns = sum(len(s.turns) for s in trace)
    assert seen[ev.TurnSubmitted] == seen[ev.TurnStarted] == seen[ev.FirstToken] == num_turns
    assert seen[ev.TurnFinished] == num_turns
    assert seen[ev.ToolFinished] == sum(len(t.tools) for s in trace for t in s.turns)
    assert seen[ev.SessionEnded] == seen[ev.SessionAdmitted] == len(trace)
    assert seen[ev.KvRetained] == seen[ev.KvReleased]
    for record, given in zip(result.sessions, trace, strict=True):
        assert record.sct_s is not None
        assert record.sct_s >= (record.ideal_s or 0.0) * 0.99
        parts = record.held_s + record.queue_s + record.prefill_s + record.decode_s
        parts += record.tool_wait_s + record.tool_s + record.gap_s
        assert parts == pytest.approx(record.sct_s)
        assert record.output_tokens == sum(t.output_tokens for t in given.turns)
        gaps_s = sum(t.gap_s for t in given.turns[:-1])
        assert record.gap_s == pytest.approx(gaps_s, abs=1e-6)


def without_stretches(config: SimConfig, machine: Machine, emit: Callable[[ev.Event], None]):
    engine = simulated_engine(config, machine, emit)
    engine.leap = lambda now, end, until: (now, end)
    return engine


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", ["fcfs", "mars-paper", "mars", "continuum-dynamic", "autellix"])
def test_stretches_of_decode_change_nothing(policy: str, is_async: bool) -> None:
    for seed in range(4):
        shape = dataclasses.replace(BUSY, seed=seed, output_tokens=300)
        config = dataclasses.replace(
            PRESSED, policy=policy, admission="mars" if seed % 2 else "none", is_async=is_async
        )
        quick = simulate(shape.trace(), config)
        slow = simulate(shape.trace(), config, make_engine=without_stretches)
        assert quick.sessions == slow.sessions
        assert encode_result(quick) == encode_result(slow)


@pytest.mark.parametrize("host_kv_tokens", [20_000, 200_000])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", ["fcfs", "mars-paper", "mars", "continuum-dynamic"])
def test_stretches_change_nothing_beside_copies_to_host_memory(
    policy: str, is_async: bool, host_kv_tokens: int
) -> None:
    for seed in range(3):
        shape = dataclasses.replace(BUSY, seed=seed, output_tokens=300)
        config = dataclasses.replace(
            PRESSED,
            policy=policy,
            admission="mars" if seed % 2 else "none",
            is_async=is_async,
            host_kv_tokens=host_kv_tokens,
        )
        quick, num_planned = planned(shape, config, simulated_engine)
        slow, num_steps = planned(shape, config, without_stretches)
        assert encode_result(quick) == encode_result(slow)
        assert num_planned < num_steps


def planned(shape: Shape, config: SimConfig, make: MakeEngine) -> tuple[Result, int]:
    """The result, and how many steps were planned one by one."""
    count = 0

    def make_engine(config: SimConfig, machine: Machine, emit: Callable[[ev.Event], None]):
        engine = make(config, machine, emit)
        plan = engine.plan

        def counted(now: float) -> float | None:
            nonlocal count
            count += 1
            return plan(now)

        engine.plan = counted
        return engine

    return simulate(shape.trace(), config, make_engine=make_engine), count


def test_all_registered_policies_run_to_the_end() -> None:
    trace = Shape(11, num_sessions=10, rate=4.0, growth_tokens=3000, shared=0.4).trace()
    runs = [SimConfig(policy=name, kv_tokens=16_000) for name in scheduling_policies.names()]
    runs += [
        SimConfig(policy="mars", admission=name, kv_tokens=16_000)
        for name in admission_policies.names()
    ]
    runs += [SimConfig(tool_policy=name, num_cpus=1) for name in tool_policies.names()]
    for config in runs:
        summary = simulate(trace, config).summary
        assert summary.sessions_failed == 0, config
        assert summary.sct_mean_s is not None


def test_watching_a_run_shows_its_load_and_does_not_change_it() -> None:
    seen: list[ev.Event] = []
    watched = simulate(BUSY.trace(), PRESSED, sink=seen.append)
    assert encode_result(watched) == encode_result(simulate(BUSY.trace(), PRESSED))
    samples = [event for event in seen if isinstance(event, ev.EngineSampled)]
    assert [e.time for e in samples] == [float(i) for i in range(len(samples))]
    assert len(samples) >= int(watched.summary.duration_s)
    assert samples[-1].computed_tokens == watched.summary.computed_tokens
    assert min(e.kv_blocks_free for e in samples) < 100
    hosts = [event for event in seen if isinstance(event, ev.HostSampled)]
    assert max(e.tools_queued for e in hosts) > 0
    times = [event.time for event in seen]
    assert times == sorted(times)


def sct(result: Result, session_id: str) -> float:
    found = next(s.sct_s for s in result.sessions if s.session_id == session_id)
    assert found is not None
    return found


def test_a_cap_holds_the_second_session_until_the_first_has_ended() -> None:
    first = session("first", prompts=(2000, 3000), output=100, tool_s=5.0)
    second = session("second", arrival_s=0.1, prompts=(2000,), output=10)
    result = simulate([first, second], SimConfig(admission="cap:1"))
    assert result.sessions[1].held_s == pytest.approx(sct(result, "first") - 0.1)
    assert result.sessions[1].turns[0].ttft_s > result.sessions[1].held_s


def test_the_fair_order_between_tenants_is_the_gateways() -> None:
    crowd = [session(f"a{i}", 0.01 * i, prompts=(2000, 3000), output=50) for i in range(5)]
    late = msgspec.structs.replace(session("b0", 0.1, prompts=(2000,), output=50), tenant="b")
    admitted: list[str] = []

    def watch(event: ev.Event) -> None:
        if isinstance(event, ev.SessionAdmitted):
            admitted.append(event.session_id)

    simulate([*crowd, late], SimConfig(admission="cap:2"), sink=watch)
    # Two of the crowd came first; then it is the turn of who has nothing in the engine.
    assert admitted == ["a0", "a1", "b0", "a2", "a3", "a4"]


def test_kv_is_there_when_the_tool_returns_and_lost_under_pressure() -> None:
    patient = session("patient", prompts=(8000, 8500), output=50, tool_s=20.0)
    others = [session(f"o{i}", 1.0 + i, prompts=(9000,), output=50) for i in range(10)]
    roomy = simulate([patient, *others], SimConfig(kv_tokens=400_000)).sessions[0]
    tight = simulate([patient, *others], SimConfig(kv_tokens=20_000)).sessions[0]
    assert roomy.turns[1].cached_tokens == (8000 + 50 - 1) // 16 * 16
    assert roomy.recomputed_tokens == 0
    assert tight.turns[1].cached_tokens == 0
    assert tight.recomputed_tokens > 7900


def test_cpu_bound_tools_slow_each_other_down() -> None:
    trace = [session(f"s{i}", prompts=(500,), tool_s=4.0, cpu_s=4.0) for i in range(8)]
    enough = simulate(trace, SimConfig(num_cpus=8)).summary
    shared = simulate(trace, SimConfig(num_cpus=2, tool_slots=8)).summary
    queued = simulate(trace, SimConfig(num_cpus=2)).summary
    assert enough.sct_mean_s
    assert shared.sct_mean_s
    assert queued.sct_mean_s
    assert shared.sct_mean_s > enough.sct_mean_s + 11.0
    # First come, first served ends some early; sharing ends all late.
    assert queued.sct_mean_s < shared.sct_mean_s - 3.0


def test_a_context_that_never_fits_fails_and_says_why() -> None:
    long, short = session("long", prompts=(500, 9000)), session("short", prompts=(300,))
    result = simulate([long, short], SimConfig(kv_tokens=4096))
    assert result.sessions[0].sct_s is None
    assert "turn 1 needs 9050 tokens" in (result.sessions[0].error or "")
    assert result.sessions[1].sct_s is not None
    assert result.summary.sessions_failed == 1


def test_an_empty_trace_is_an_empty_result() -> None:
    empty = TraceSession(session_id="described-only")
    summary = simulate([empty], SimConfig()).summary
    assert summary.sessions == 0
    assert summary.sct_mean_s is None


def test_a_gate_that_never_opens_is_an_error_and_no_endless_loop() -> None:
    class Closed(PolicyEngine):
        def _may_start(self, request: object, free: int) -> bool:
            return False

    def closed(config: SimConfig, machine: Machine, emit: Callable[[ev.Event], None]):
        engine = simulated_engine(config, machine, emit)
        return Closed(engine.co, machine.shape, machine.cost)

    with pytest.raises(StuckError, match="turns wait"):
        simulate([session()], SimConfig(policy="mars"), make_engine=closed)
