# SPDX-License-Identifier: Apache-2.0
"""Slots follow the cores that tools use, within bounds, and never beyond the memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.model import Load, ToolCall
from mars.core.policy import tool_policies
from mars.core.slots import CoreDemand


def used(cores: float, seconds: float = 10.0, peak_bytes: int = 0) -> ToolCall:
    return ToolCall("c", "s", "bash", 0.0, 0.0, seconds, cores * seconds, peak_bytes, 0)


def load(cores: int = 4, free: int | None = None, running: int | None = None) -> Load:
    return Load(sampled_at=0.0, cpu_cores=cores, memory_bytes_free=free, tools_running=running)


@pytest.mark.parametrize(
    ("cores_used", "slots"), [(0.01, 16), (0.25, 16), (0.5, 8), (1.0, 4), (2.0, 4)]
)
def test_slots_are_what_the_cores_can_feed(cores_used: float, slots: int) -> None:
    demand = CoreDemand(4.0)
    for _ in range(10):
        demand.observe(used(cores_used))
    assert demand.slots(load()) == slots


def test_nothing_is_moved_before_something_is_known_or_where_it_is_off() -> None:
    assert CoreDemand(4.0).slots(load()) is None
    fixed = CoreDemand(1.0)
    fixed.observe(used(0.1))
    assert fixed.slots(load()) is None
    eager = CoreDemand(4.0)
    eager.observe(used(0.1))
    assert eager.slots(Load(sampled_at=0.0)) is None


def test_fewer_slots_than_cores_stay_as_they_are_configured() -> None:
    demand = CoreDemand(4.0)
    demand.observe(used(0.1))
    assert demand.slots(Load(sampled_at=0.0, cpu_cores=4, tool_slots=3)) is None
    assert demand.slots(Load(sampled_at=0.0, cpu_cores=4, tool_slots=4)) == 16


def test_memory_bounds_what_starts() -> None:
    demand = CoreDemand(8.0)
    demand.observe(used(0.1, peak_bytes=1 << 30))
    assert demand.slots(load(free=3 << 30, running=5)) == 8
    assert demand.slots(load(free=0, running=9)) == 9
    assert demand.slots(load(free=0, running=0)) == 4


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1e4)), max_size=30), st.integers(1, 64))
def test_slots_stay_within_their_bounds(calls: list[tuple[float, float]], cores: int) -> None:
    demand = CoreDemand(4.0)
    for cores_used, seconds in calls:
        demand.observe(used(cores_used, seconds))
    slots = demand.slots(load(cores))
    assert slots is None or cores <= slots <= 4 * cores


def test_the_policy_offers_it_as_an_option() -> None:
    policy = tool_policies.create("shortest", overcommit=4.0)
    policy.on_finish(used(0.25), 10.0)
    assert policy.slots(load(), 10.0) == 16
    with pytest.raises(ValueError, match="overcommit"):
        tool_policies.create("shortest", overcommit=0.5)
