# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.bench.metrics import jain_index, percentile, summarise
from mars.bench.result import RunTotals, SessionRecord, TurnRecord


def _session(sct_s: float | None, ideal_s: float = 10.0, **fields: object) -> SessionRecord:
    return SessionRecord(
        session_id=f"s{sct_s}", arrival_s=0.0, sct_s=sct_s, ideal_s=ideal_s, **fields
    )  # type: ignore[arg-type]


def test_completion_times_and_slowdown() -> None:
    got = summarise([_session(20.0), _session(40.0)], RunTotals(duration_s=3600.0))
    assert (got.sct_mean_s, got.sct_p50_s, got.slowdown_mean) == (30.0, 30.0, 3.0)
    assert got.sct_p90_s == pytest.approx(38.0)
    assert got.sessions_per_h == 2.0


def test_goodput_counts_sessions_within_alpha_of_ideal_per_hour() -> None:
    sessions = [_session(x) for x in (15.0, 20.0, 30.0, 31.0, 60.0)]
    got = summarise(sessions, RunTotals(duration_s=1800.0))
    assert got.goodput == {"2": 4.0, "3": 6.0, "5": 8.0}


def test_a_failed_session_is_counted_but_not_measured() -> None:
    failed = _session(5.0, error="client gone")
    got = summarise([_session(20.0), failed, _session(None)], RunTotals(duration_s=3600.0))
    assert (got.sessions, got.sessions_failed) == (3, 2)
    assert got.sct_mean_s == 20.0
    assert got.goodput["5"] == 1.0


def test_nothing_finished_gives_null_not_zero() -> None:
    got = summarise([_session(None)], RunTotals(duration_s=0.0))
    assert got.sct_mean_s is None
    assert got.slowdown_mean is None
    assert got.prefix_hit_rate is None
    assert got.fairness_jain is None


def test_counters_of_the_engine_are_preferred_to_sums() -> None:
    sessions = [
        _session(1.0, cached_tokens=30, prompt_tokens=40, computed_tokens=12, preemptions=1)
    ]
    summed = summarise(sessions, RunTotals(duration_s=1.0))
    counted = summarise(
        sessions,
        RunTotals(duration_s=1.0, prefix_hits_tokens=10, prefix_queries_tokens=40, preemptions=0),
    )
    assert (summed.prefix_hit_rate, summed.preemptions, summed.computed_tokens) == (0.75, 1, 12)
    assert (counted.prefix_hit_rate, counted.preemptions) == (0.25, 0)


def test_ttft_is_over_turns_not_sessions() -> None:
    turns = [
        TurnRecord(turn_index=i, sent_s=0.0, prompt_tokens=1, output_tokens=1, ttft_s=float(i))
        for i in range(101)
    ]
    got = summarise([_session(1.0, turns=turns)], RunTotals(duration_s=1.0))
    assert (got.ttft_p50_s, got.ttft_p99_s) == (50.0, 99.0)


def test_percentile_of_nothing_is_unknown() -> None:
    assert percentile([], 50) is None


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_jain_lies_between_one_over_n_and_one(values: list[float]) -> None:
    index = jain_index(values)
    assert index is not None
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9


def test_jain_of_equal_and_of_one_taking_all() -> None:
    assert jain_index([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
