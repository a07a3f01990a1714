# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mars.core.forecast import Projection
from mars.core.model import ActiveSet, Activity, HeldSession, Session
from mars.core.sharing import WINDOW, SharedPrefixes

tokens = st.integers(1, 300_000)


def test_nothing_is_shared_before_anything_was_seen() -> None:
    assert SharedPrefixes().expected_tokens(20_000) == 0


def test_kinds_are_apart_and_one_cold_start_does_not_forget() -> None:
    shared = SharedPrefixes()
    for hit in (0, 16_000, 16_000, 16_000, 0):
        shared.started(20_000, hit)
    shared.started(900, 0)
    assert (shared.expected_tokens(22_000), shared.expected_tokens(1000)) == (16_000, 0)


@given(st.lists(st.tuples(tokens, tokens), max_size=4 * WINDOW), tokens)
def test_no_more_is_expected_than_there_is(seen: list[tuple[int, int]], first: int) -> None:
    shared = SharedPrefixes()
    for first_tokens, hit in seen:
        shared.started(first_tokens, hit)
    assert 0 <= shared.expected_tokens(first) <= first


def active(num: int, shared_tokens: int | None) -> ActiveSet:
    sessions = [
        Session(f"s{i}", arrival_time=0.0, context_tokens=30_000, shared_tokens=shared_tokens)
        for i in range(num)
    ]
    return ActiveSet({s.session_id: s for s in sessions})


def test_instructions_that_all_have_count_once() -> None:
    known = Projection()
    assert known.working_set_tokens(active(4, None), 0.0) == 120_000
    assert known.working_set_tokens(active(4, 20_000), 0.0) == 20_000 + 4 * 10_000


def test_a_session_to_come_is_charged_without_them_once_some_were_seen() -> None:
    known = Projection()
    held = HeldSession(Session("new", arrival_time=0.0), 0.0, 30_000)
    assert known.held_tokens(held) == 30_000
    for _ in range(2):
        known.watched(active(4, 20_000))
    assert known.held_tokens(held) == 10_000


def test_who_is_away_for_long_counts_less_and_less() -> None:
    known, sessions = Projection(), active(1, None)
    (session,) = sessions.sessions.values()
    session.activity, session.last_turn_finished_at = Activity.ACTING, 0.0
    needs = [known.working_set_tokens(sessions, t, idle_weight=0.5) for t in (5, 30, 120, 1200)]
    assert needs == [30_000, 15_000, 7_500, 750]
