# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.model import Load
from mars.core.window import AimdWindow, Average, CpuPressure, Pressure

signal = st.none() | st.floats(0.0, 1.0) | st.just(math.nan)


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_the_window_stays_within_its_bounds(moves):
    window = AimdWindow(start=8, floor=2, ceiling=12)
    for i, (is_pressed, may_grow) in enumerate(moves):
        window.update(float(i), is_pressed=is_pressed, may_grow=may_grow)
        assert 2 <= window.size <= 12


def test_additive_increase_and_multiplicative_decrease():
    window = AimdWindow(start=20, floor=4, ceiling=30)
    window.update(0.0, is_pressed=False, may_grow=True)
    assert window.size == 21
    window.update(1.0, is_pressed=True, may_grow=True, why="kv")
    assert window.size == 14
    assert window.reason == "kv"
    window.update(2.0, is_pressed=False, may_grow=False)
    assert window.size == 14


def test_one_move_an_interval():
    window = AimdWindow(start=20, floor=4, ceiling=30, interval_s=0.2)
    moved = [window.update(t, is_pressed=True, may_grow=False) for t in (0.0, 0.1, 0.19, 0.2)]
    assert moved == [True, False, False, True]
    assert window.size == 9


@given(st.lists(signal))
def test_between_its_bounds_pressure_does_not_flap(values):
    """The state changes only at a crossing of the far bound, or when the value is unknown."""
    pressure = Pressure(high=0.90, low=0.85)
    for value in values:
        before = pressure.is_pressed
        after = pressure.update(value)
        if value is None or math.isnan(value):
            assert after
        elif after and not before:
            assert value >= 0.90
        elif before and not after:
            assert value <= 0.85


@given(st.lists(st.floats(0.8501, 0.8999), min_size=1), st.booleans())
def test_inside_the_band_nothing_changes(values, start):
    pressure = Pressure(high=0.90, low=0.85, is_pressed=start)
    assert {pressure.update(v) for v in values} == {start}


def test_the_average_skips_what_is_not_known():
    average = Average(alpha=0.5)
    assert average.update(None) is None
    assert average.update(4.0) == 4.0
    assert average.update(None) == 4.0
    assert average.update(0.0) == 2.0


def pool(slots=8, running=0, queued=0, delay_s=0.0):
    return Load(
        0.0,
        tool_slots=slots,
        tools_running=running,
        tools_queued=queued,
        tool_queue_delay_s=delay_s,
    )


def test_cpu_is_pressed_by_backlog_and_relieved_late():
    cpu = CpuPressure()
    assert not cpu.update(pool(running=8, queued=23))
    assert cpu.update(pool(running=8, queued=24))
    assert cpu.update(pool(running=8, queued=1))
    assert not cpu.update(pool(running=8, queued=0))


def test_cpu_is_pressed_by_a_smoothed_wait():
    cpu = CpuPressure()
    cpu.update(pool(delay_s=0.0))
    assert not cpu.update(pool(delay_s=20.0))
    assert cpu.update(pool(delay_s=20.0))


def test_no_tool_pool_is_no_pressure_but_a_silent_one_is():
    cpu = CpuPressure()
    assert not cpu.update(Load(0.0))
    assert cpu.cap == math.inf
    cpu.update(pool())
    assert cpu.cap == 20
    assert cpu.update(Load(1.0))


@pytest.mark.parametrize("options", [{"floor": 0}, {"start": 40}, {"decrease": 1.0}])
def test_an_impossible_window_is_refused(options):
    with pytest.raises(ValueError, match="window"):
        AimdWindow(**options)


def test_pressure_bounds_must_not_cross():
    with pytest.raises(ValueError, match="low"):
        Pressure(high=0.5, low=0.6)
