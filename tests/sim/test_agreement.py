# SPDX-License-Identifier: Apache-2.0
"""The simulator against vLLM's own scheduler in virtual time: not close, the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from mars.bench.result import Result, encode_result
from mars.core.events import Event
from mars.core.policy import scheduling_policies
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.sim.loop import EngineModel
from mars.sim.run import Machine, SimConfig, simulate, simulated_engine
from sim.workloads import Shape

pytestmark = pytest.mark.vllm

TRACES: dict[str, tuple[Shape, SimConfig]] = {
    "roomy": (Shape(1), SimConfig(kv_tokens=60_000, is_async=False)),
    "thrash": (
        Shape(2, num_sessions=24, rate=8.0, growth_tokens=5000, num_turns=5),
        SimConfig(kv_tokens=24_000, is_async=False),
    ),
    "thrash-async": (
        Shape(3, num_sessions=24, rate=8.0, growth_tokens=5000, num_turns=5),
        SimConfig(kv_tokens=24_000, is_async=True),
    ),
    "preempt": (
        Shape(4, num_sessions=24, rate=20.0, growth_tokens=400, output_tokens=600),
        SimConfig(kv_tokens=6_000, is_async=False),
    ),
    "preempt-async": (
        Shape(5, num_sessions=24, rate=20.0, growth_tokens=400, output_tokens=600),
        SimConfig(kv_tokens=6_000, is_async=True),
    ),
    "shared-prefixes": (
        Shape(6, num_sessions=14, rate=3.0, growth_tokens=1200, shared=0.6),
        SimConfig(kv_tokens=6_500, is_async=True),
    ),
    "compaction": (
        Shape(7, num_sessions=14, rate=3.0, growth_tokens=1500, compacts=0.5, num_turns=6),
        SimConfig(kv_tokens=10_000, is_async=False),
    ),
    "few-seats": (
        Shape(8, num_sessions=12, rate=5.0),
        SimConfig(kv_tokens=9_000, max_num_seqs=3, max_num_batched_tokens=512, is_async=True),
    ),
    "watermark": (
        Shape(9, num_sessions=16, rate=5.0, output_tokens=400),
        SimConfig(kv_tokens=9_000, watermark=0.05, is_async=True),
    ),
    "admission": (
        Shape(10, num_sessions=16, rate=5.0, growth_tokens=2500, shared=0.3),
        SimConfig(kv_tokens=12_000, admission="cap:4", num_cpus=2, is_async=True),
    ),
}
POLICIES = ("fcfs", "continuum-dynamic", "mars-paper", "mars")
CASES = [(name, policy) for name in TRACES for policy in POLICIES] + [
    ("preempt-async", policy) for policy in scheduling_policies.names() if policy not in POLICIES
]


def run_both(
    shape: Shape, config: SimConfig, directory: Path, *, is_stock: bool = False
) -> tuple[Result, int, Result, int]:
    """Results and step counts: simulated, then vLLM's scheduler."""
    engines: list[EngineModel] = []

    def simulated(config: SimConfig, machine: Machine, emit: Callable[[Event], None]):
        engines.append(simulated_engine(config, machine, emit))
        return engines[-1]

    def real(config: SimConfig, machine: Machine, emit: Callable[[Event], None]):
        plug_in = None if is_stock else {"policy": config.policy, "profile": config.machine}
        limits = VirtualShape(**dataclasses.asdict(machine.shape))
        host = machine.host
        engines.append(VirtualEngine(limits, machine.cost, directory, plug_in, emit, host))
        return engines[-1]

    trace = shape.trace()
    ours = simulate(trace, config, make_engine=simulated)
    theirs = simulate(trace, config, make_engine=real)
    return ours, engines[0].num_steps, theirs, engines[1].num_steps


@pytest.mark.parametrize("name", TRACES)
def test_stock_vllm_takes_the_same_steps_to_the_same_times(name: str, tmp_path: Path) -> None:
    shape, config = TRACES[name]
    ours, our_steps, theirs, their_steps = run_both(shape, config, tmp_path, is_stock=True)
    assert our_steps == their_steps
    assert [s.sct_s for s in ours.sessions] == [s.sct_s for s in theirs.sessions]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_the_plug_in_does_in_vllm_what_its_policy_does_here(
    name: str, policy: str, tmp_path: Path
) -> None:
    shape, config = TRACES[name]
    config = dataclasses.replace(config, policy=policy)
    ours, our_steps, theirs, their_steps = run_both(shape, config, tmp_path)
    assert our_steps == their_steps
    # Every turn's first token and end, its hits, what was recomputed and preempted.
    assert ours.sessions == theirs.sessions
    assert encode_result(ours) == encode_result(theirs)


@pytest.mark.parametrize(
    "policy", ["stock", "continuum-dynamic", "infercept", "mars-paper", "mars"]
)
@pytest.mark.parametrize(
    "name", ["thrash", "thrash-async", "preempt", "preempt-async", "shared-prefixes", "admission"]
)
def test_host_memory_is_used_as_vllm_offloads(name: str, policy: str, tmp_path: Path) -> None:
    """Against vLLM's own ``OffloadingConnector``; only its copies are modelled there."""
    shape, config = TRACES[name]
    is_stock = policy == "stock"
    config = dataclasses.replace(
        config,
        policy="fcfs" if is_stock else policy,
        # Roomy: vLLM evicts what turns left that ended in one step in the order of a set.
        host_kv_tokens=8 * (config.kv_tokens or 0),
    )
    ours, our_steps, theirs, their_steps = run_both(shape, config, tmp_path, is_stock=is_stock)
    assert our_steps == their_steps
    assert [s.sct_s for s in ours.sessions] == [s.sct_s for s in theirs.sessions]
    if not is_stock:
        assert encode_result(ours) == encode_result(theirs)


def test_host_memory_spares_what_was_computed_before() -> None:
    shape, config = TRACES["thrash"]
    without = simulate(shape.trace(), config).summary
    roomy = dataclasses.replace(config, host_kv_tokens=200_000)
    with_tier = simulate(shape.trace(), roomy).summary
    tight = dataclasses.replace(config, host_kv_tokens=30_000)
    with_little = simulate(shape.trace(), tight).summary
    assert with_tier.recomputed_tokens < 0.05 * without.recomputed_tokens
    assert with_tier.sct_mean_s < without.sct_mean_s
    assert with_tier.recomputed_tokens < with_little.recomputed_tokens < without.recomputed_tokens


def test_the_traces_reach_what_they_are_there_for() -> None:
    """Agreement on traces that never press memory would prove little."""
    results = {
        (name, policy): simulate(shape.trace(), dataclasses.replace(config, policy=policy)).summary
        for name, (shape, config) in TRACES.items()
        for policy in ("fcfs", "mars-paper")
    }
    assert results["preempt", "fcfs"].preemptions > 5
    assert results["preempt-async", "fcfs"].preemptions > 5
    assert results["thrash", "fcfs"].recomputed_tokens > 10_000
    assert results["thrash", "mars-paper"].recomputed_tokens > 1_000
    assert (results["shared-prefixes", "fcfs"].prefix_hit_rate or 0.0) > 0.3
