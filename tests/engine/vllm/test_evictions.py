# SPDX-License-Identifier: Apache-2.0
"""The plug-in tells the decisions that the simulator tells, evictions by plain LRU included."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from mars.core import events as ev
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.sim.run import Machine, SimConfig, simulate
from tests.sim.workloads import Shape

pytestmark = pytest.mark.vllm

SHAPE = Shape(2, num_sessions=16, rate=8.0, growth_tokens=5000, num_turns=5)
PRESSED = SimConfig(kv_tokens=24_000, is_async=False)
DECISIONS = (
    ev.TurnPreempted,
    ev.TurnResumed,
    ev.ChunkShrunk,
    ev.LevelChanged,
    ev.KvRetained,
    ev.KvReleased,
)


@pytest.mark.parametrize("policy", ["fcfs", "mars-paper", "autellix", "mars"])
def test_the_plug_in_tells_the_same_decisions_as_the_simulator(policy: str, tmp_path: Path) -> None:
    config = dataclasses.replace(PRESSED, policy=policy)

    def real(config: SimConfig, machine: Machine, emit: Callable[[ev.Event], None]):
        limits = VirtualShape(**dataclasses.asdict(machine.shape))
        plug_in = {"policy": config.policy, "profile": config.machine}
        return VirtualEngine(limits, machine.cost, tmp_path, plug_in, emit)

    simulated: list[ev.Event] = []
    told: list[ev.Event] = []
    simulate(SHAPE.trace(), config, sink=simulated.append)
    simulate(SHAPE.trace(), config, sink=told.append, make_engine=real)
    assert of_kind(told, *DECISIONS) == of_kind(simulated, *DECISIONS)
    evicted = evicted_blocks(told)
    assert evicted == evicted_blocks(simulated)
    assert sum(evicted.values()) > 500


def of_kind(events: list[ev.Event], *kinds: type[ev.Event]) -> list[ev.Event]:
    return [event for event in events if isinstance(event, kinds)]


def evicted_blocks(events: list[ev.Event]) -> Counter[str]:
    """Blocks by session: the simulator tells those of a stretch of decode at its end."""
    blocks: Counter[str] = Counter()
    for event in events:
        if isinstance(event, ev.KvEvicted):
            blocks[event.session_id] += event.num_blocks
    return blocks
