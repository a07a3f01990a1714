# SPDX-License-Identifier: Apache-2.0
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.forecast import GrowthForecast, Projection, TurnsAhead
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session


@given(st.lists(st.integers(-5_000, 500_000), min_size=1, max_size=200))
def test_forecast_is_half_the_mean_of_the_last_forty(growths):
    forecast = GrowthForecast()
    for growth in growths:
        forecast.finished(growth)
    recent = [max(0, g) for g in growths[-40:]]
    assert forecast.ahead_tokens() == pytest.approx(statistics.fmean(recent) / 2, abs=1e-3)


def test_before_anything_finished_what_is_under_way_counts():
    forecast = GrowthForecast()
    assert forecast.ahead_tokens() == 0
    forecast.watched(10_000)
    forecast.watched(4_000)
    assert forecast.ahead_tokens() == 5_000
    forecast.finished(2_000)
    assert forecast.ahead_tokens() == 1_000


def correlation(lengths):
    pairs = [(k, n - k) for n in lengths for k in range(1, n + 1)]
    return -statistics.correlation([p[0] for p in pairs], [p[1] for p in pairs])


@given(st.lists(st.integers(1, 60), min_size=2, max_size=30).filter(lambda n: len(set(n)) > 1))
def test_eta_is_minus_the_correlation_of_done_and_ahead(lengths):
    turns = TurnsAhead()
    for n in lengths:
        turns.add(n)
    assert turns.eta == pytest.approx(correlation(lengths), abs=1e-6)


def test_eta_is_one_until_two_lengths_were_seen():
    turns = TurnsAhead()
    assert turns.eta == 1.0
    turns.add(7)
    turns.add(7)
    assert turns.eta == 1.0


def test_projection_learns_growth_from_first_prompt_to_end():
    projection = Projection()
    session = Session("a", 0.0)
    projection.admitted(HeldSession(session, 0.0, 9_000))
    assert projection.present_tokens(session) == 9_000
    session.context_tokens = 29_000
    assert projection.present_tokens(session) == 29_000
    projection.ended(session)
    assert projection.growth.mean_tokens == 20_000
    projection.ended(session)
    assert projection.growth.mean_tokens == 20_000


def test_the_pool_stays_known_when_telemetry_is_lost():
    projection = Projection()
    assert projection.saw(Load(0.0)) == 0
    projection.saw(Load(0.0, kv_blocks_total=100, block_size=16))
    assert projection.saw(Load(1.0)) == 1600


def test_projection_forgets_sessions_that_are_gone():
    projection = Projection()
    for i in range(1000):
        projection.admitted(HeldSession(Session(f"s{i}", 0.0), 0.0, 10))
        projection.watched(ActiveSet())
    assert len(projection._growing) <= 65


def test_a_compaction_ends_one_growth_and_starts_another() -> None:
    projection = Projection()
    session = Session("s", 0.0)
    active = ActiveSet({"s": session})
    projection.admitted(HeldSession(session, 0.0, 2_000))
    for tokens in (2_000, 9_000):
        session.context_tokens = tokens
        projection.watched(active)
    session.epoch, session.context_tokens = 1, 3_000
    assert projection.present_tokens(session) == 3_000
    projection.watched(active)
    assert projection.growth.mean_tokens == 7_000
    session.context_tokens = 4_000
    projection.watched(active)
    projection.ended(session)
    assert projection.growth.mean_tokens == 4_000


def test_who_is_away_for_long_counts_less_and_less():
    known = Projection()
    session = Session("s", arrival_time=0.0, context_tokens=30_000)
    session.activity, session.last_turn_finished_at = Activity.ACTING, 0.0
    active = ActiveSet({"s": session})
    needs = [known.working_set_tokens(active, t, idle_weight=0.5) for t in (5, 30, 120, 1200)]
    assert needs == [30_000, 15_000, 7_500, 750]
