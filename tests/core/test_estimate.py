# SPDX-License-Identifier: Apache-2.0
"""Tool-time estimates: right where they know, careful where they do not, bounded always."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.estimate import MAX_WEIGHT, DurationEstimator

seconds = st.floats(min_value=0.0, max_value=1e6)
observations = st.lists(
    st.tuples(st.sampled_from(["bash:ls", "bash:pytest", "edit", "web"]), seconds), max_size=60
)


def learned(calls: list[tuple[str, float]]) -> DurationEstimator:
    estimator = DurationEstimator()
    for name, duration_s in calls:
        estimator.observe(name, duration_s)
    return estimator


def test_a_class_seen_often_is_known_to_ten_percent() -> None:
    estimator = learned([("bash:pytest", 8.0)] * 100 + [("edit", 0.05)] * 100)
    assert estimator.expected("bash:pytest") == pytest.approx(8.0, rel=0.15)
    assert estimator.expected("edit") < 0.15


def test_the_mean_of_a_skewed_class_is_learned_not_its_median() -> None:
    random.seed(7)
    durations = [random.lognormvariate(0.0, 1.5) for _ in range(250)]
    estimator = learned([("shell", d) for d in durations])
    assert estimator.expected("shell") == pytest.approx(sum(durations) / 250, rel=0.15)


def test_a_command_never_seen_is_judged_by_its_tool_before_all_calls() -> None:
    estimator = learned([("bash:make", 60.0)] * 20 + [("read", 0.03)] * 200)
    assert estimator.expected("bash:cmake") > 20.0
    assert estimator.expected("grep") < 10.0


def test_one_observation_is_not_believed_as_much_as_many() -> None:
    once = learned([("test", 300.0)]).expected("test")
    often = learned([("test", 300.0)] * 30).expected("test")
    assert once < 0.9 * often


def test_a_call_that_outlived_everything_known_is_expected_to_go_on() -> None:
    estimator = learned([("test", 1.0)] * 100)
    assert estimator.expected("test", elapsed_s=500.0) > 100.0
    assert estimator.survival("test", 500.0, 1.0) < 0.1


def test_old_behaviour_fades() -> None:
    estimator = learned([("test", 100.0)] * 300 + [("test", 1.0)] * int(4 * MAX_WEIGHT))
    assert estimator.expected("test") < 10.0


def test_number_of_classes_is_bounded_and_the_oldest_goes_first() -> None:
    estimator = DurationEstimator(max_classes=8)
    for i in range(1000):
        estimator.observe("kept", 50.0)
        estimator.observe(f"tool-{i}", 0.01)
    assert len(estimator) == 8
    assert estimator.expected("kept") == pytest.approx(50.0, rel=0.15)


def test_no_room_for_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match="max_classes"):
        DurationEstimator(max_classes=0)


@given(observations, seconds, seconds, seconds)
def test_return_probability_grows_with_the_horizon(
    calls: list[tuple[str, float]], elapsed_s: float, first_s: float, second_s: float
) -> None:
    estimator = learned(calls)
    near, far = sorted((first_s, second_s))
    p_near = estimator.survival("bash:ls", elapsed_s, near)
    p_far = estimator.survival("bash:ls", elapsed_s, far)
    assert 0.0 <= p_near <= p_far + 1e-9 <= 1.0 + 1e-9


@given(observations, seconds)
def test_estimates_are_finite_and_never_negative(
    calls: list[tuple[str, float]], elapsed_s: float
) -> None:
    expected_s = learned(calls).expected("bash:pytest", elapsed_s)
    assert math.isfinite(expected_s)
    assert expected_s >= 0.0


@given(observations, seconds, seconds)
def test_expected_end_never_moves_earlier_while_a_call_runs(
    calls: list[tuple[str, float]], first_s: float, second_s: float
) -> None:
    estimator = learned(calls)
    early, late = sorted((first_s, second_s))
    end_early = early + estimator.expected("edit", early)
    end_late = late + estimator.expected("edit", late)
    assert end_late >= end_early * (1 - 1e-6) - 1e-9


@given(observations, st.floats(min_value=0.001, max_value=1e4))
def test_a_longer_observation_never_shortens_the_estimate(
    calls: list[tuple[str, float]], duration_s: float
) -> None:
    shorter, longer = learned(calls), learned(calls)
    shorter.observe("edit", duration_s)
    longer.observe("edit", 3.0 * duration_s)
    assert longer.expected("edit") >= shorter.expected("edit")


@given(observations)
def test_reading_changes_nothing(calls: list[tuple[str, float]]) -> None:
    estimator = learned(calls)
    first = [estimator.expected(name, 2.0) for name in ("edit", "web", "never")]
    assert first == [estimator.expected(name, 2.0) for name in ("edit", "web", "never")]


@pytest.mark.parametrize("seconds_seen", [math.nan, math.inf, -5.0])
def test_impossible_durations_do_no_harm(seconds_seen: float) -> None:
    estimator = learned([("edit", 1.0)] * 10)
    estimator.observe("edit", seconds_seen)
    assert 0.0 < estimator.expected("edit") < 3.0
