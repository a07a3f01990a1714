# SPDX-License-Identifier: Apache-2.0
"""What the plug-in knows of vLLM's host memory, against the simulator and the real thing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.core.copies import HostLink, HostMemory
from mars.core.reload import TieredCost
from mars.engine.vllm.host import ASSUMED_LINK, HostFacts, host_facts
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile
from mars.sim.run import Machine, SimConfig, simulate, simulated_engine
from tests.engine.vllm.connectors import NEEDS_CONNECTORS
from tests.sim.workloads import Shape

pytestmark = NEEDS_CONNECTORS

THRASH = Shape(3, num_sessions=12, rate=8.0, growth_tokens=5000, num_turns=4)
CONFIG = SimConfig(policy="mars", kv_tokens=24_000, host_kv_tokens=200_000, is_async=True)
SMALL = VirtualShape(num_blocks=100)


def watched(engine: Any, turns: dict[str, Any], seen: dict[str, Any]) -> Any:
    """Notes what each turn's policy is told of host memory."""
    submit = engine.submit

    def noting(request_id: str, *arguments: Any) -> None:
        submit(request_id, *arguments)
        seen[request_id] = turns[request_id].num_host_tokens

    engine.submit = noting
    return engine


def test_policies_are_told_the_same_of_host_memory_as_in_the_simulator(tmp_path: Path) -> None:
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}

    def simulated(config: SimConfig, machine: Machine, emit: Any) -> Any:
        engine = simulated_engine(config, machine, emit)
        return watched(engine, engine.co.turns, ours)

    def real(config: SimConfig, machine: Machine, emit: Any) -> Any:
        shape = VirtualShape(**dataclasses.asdict(machine.shape))
        plug_in = {"policy": config.policy, "profile": config.machine}
        engine = VirtualEngine(shape, machine.cost, tmp_path, plug_in, emit, machine.host)
        scheduler: Any = engine.scheduler
        assert scheduler._host.num_blocks == 200_000 // 16
        assert scheduler._current_load(0.0).host_blocks_total == 200_000 // 16
        return watched(engine, scheduler._co.turns, theirs)

    simulate(THRASH.trace(), CONFIG, make_engine=simulated)
    simulate(THRASH.trace(), CONFIG, make_engine=real)
    assert ours == theirs
    returns = [tokens for name, tokens in ours.items() if not name.endswith("/0")]
    assert max(returns) > 5000


def made(directory: Path, **options: Any) -> Any:
    cost = load_profile(CONFIG.machine).cost
    return VirtualEngine(SMALL, cost, directory, {"policy": "mars"}, **options).scheduler


def test_without_a_connector_nothing_is_known_or_priced(tmp_path: Path) -> None:
    scheduler = made(tmp_path)
    assert scheduler._host is None
    assert not scheduler._co.policy.cost.has_tier
    assert scheduler._current_load(0.0).host_blocks_total is None


def test_a_connector_that_is_not_understood_is_not_priced_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = made(tmp_path)

    class Other:
        pass

    scheduler.connector = Other()
    assert host_facts(scheduler) is None
    scheduler.connector = type("OffloadingConnector", (), {})()
    assert host_facts(scheduler) is None


def test_reloads_are_priced_by_the_profile_or_by_what_is_assumed(tmp_path: Path) -> None:
    host = HostMemory(HostLink(1e9), 4096, 64)
    facts = made(tmp_path, host=host)._host
    assert isinstance(facts, HostFacts)
    profile = load_profile(CONFIG.machine)
    priced, assumed = facts.prices(profile), facts.prices(None)
    assert isinstance(priced, TieredCost)
    per_token_s = profile.kv_bytes_per_token / profile.host_link.bytes_per_s
    assert priced.reload_s_per_token == pytest.approx(per_token_s)
    assert assumed.host.link == ASSUMED_LINK
    assert assumed.host.bytes_per_block == 16 * 4 * 16 * 2 * 2
