# SPDX-License-Identifier: Apache-2.0
"""How many sessions the CPUs let in; the thresholds are those of the module."""

import math

import pytest

from mars.core.cpugate import CPU_BUSY, CPU_SWAMPED, CpuGate
from mars.core.model import Load


def load(backlog: float | None) -> Load:
    queued = None if backlog is None else int(backlog * 4) - 4
    running = None if backlog is None else 4
    return Load(0.0, tool_slots=4, tools_running=running, tools_queued=queued)


NUM_ACTIVE = 8


def settled(backlog: float) -> CpuGate:
    gate = CpuGate(pace_s=30.0)
    for i in range(400):
        gate.update(load(backlog), NUM_ACTIVE, float(i))
    return gate


@pytest.mark.parametrize(
    ("backlog", "room"),
    [(1.0, NUM_ACTIVE), (CPU_BUSY + 0.5, 1), (CPU_SWAMPED + 1.0, 0)],
)
def test_the_more_tools_wait_the_fewer_sessions_come(backlog: float, room: float) -> None:
    gate = settled(backlog)
    assert gate.room(NUM_ACTIVE, 400.0) == room
    assert gate.is_closed == (room == 0)


def test_while_busy_one_session_a_pace() -> None:
    gate = settled(CPU_BUSY + 0.5)
    gate.admitted(400.0)
    assert gate.room(NUM_ACTIVE, 429.0) == 0
    assert gate.room(NUM_ACTIVE, 431.0) == 1


def test_a_pool_that_fell_silent_is_swamped_and_no_pool_is_not() -> None:
    gate = settled(1.0)
    gate.update(load(None), NUM_ACTIVE, 401.0)
    assert gate.room(NUM_ACTIVE, 401.0) == 0
    never = CpuGate(pace_s=30.0)
    never.update(load(None), 0, 0.0)
    assert never.room(0, 0.0) == math.inf


def test_a_crowd_is_let_in_up_to_the_tools_it_will_bring() -> None:
    """Half of the sessions act: 2 x 4 slots / 0.5, whether or not their tools run already."""
    gate = CpuGate(pace_s=30.0)
    gate.update(load(1.0), NUM_ACTIVE, 0.0)
    assert gate.room(NUM_ACTIVE, 0.0) == 8
    gate.admitted(0.0)
    assert gate.room(16, 0.2) == 0
