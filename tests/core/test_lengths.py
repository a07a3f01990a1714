# SPDX-License-Identifier: Apache-2.0
"""What is learned of the length of sessions, and the order that follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.lengths import SessionLengths, ShortKindsFirst
from mars.core.model import ActiveSet, HeldSession, Session


def held(name, since, tokens, **fields):
    return HeldSession(Session(name, since), since, tokens, **fields)


def test_nothing_known_is_the_middle_for_everybody():
    lengths = SessionLengths()
    assert lengths.expected_s(500) == 0.0
    assert lengths.handicap(500) == lengths.handicap(50_000) == 0.5


def test_kinds_are_octaves_of_the_first_prompt():
    lengths = SessionLengths()
    for _ in range(20):
        lengths.ended(600, 60.0)
        lengths.ended(14_000, 600.0)
    assert lengths.expected_s(1_000) == pytest.approx(60.0, rel=0.5)
    assert lengths.expected_s(9_000) == pytest.approx(600.0, rel=0.1)
    assert lengths.expected_s(100_000) == pytest.approx(lengths.mean_s)
    assert lengths.handicap(600) < 0.3
    assert lengths.handicap(14_000) > 0.6


def test_of_one_kind_nobody_goes_first():
    queue = ShortKindsFirst(3600.0, 0.3)
    for i, seconds in enumerate((10.0, 500.0, 90.0)):
        visit = held(f"v{i}", 0.0, 600 + i)
        queue.admitted(visit, 0.0)
        queue.ended(visit.session, seconds)
    names = [
        h.session.session_id for h in queue.ordered([held("b", 2.0, 1000), held("a", 1.0, 700)])
    ]
    assert names == ["a", "b"]


def test_the_long_ones_count_before_they_end():
    queue = ShortKindsFirst(3600.0, 0.3)
    short, long = held("s", 0.0, 500), held("l", 0.0, 16_000)
    for visit in (short, long):
        queue.admitted(visit, 0.0)
    queue.ended(short.session, 50.0)
    assert queue.lengths.expected_s(16_000) == pytest.approx(50.0)
    queue.watched(ActiveSet({"l": long.session}), 400.0)
    assert queue.lengths.expected_s(16_000) > 300.0
    assert queue.lengths.expected_s(500) == pytest.approx(50.0)


def test_a_resumed_session_has_started_before():
    queue = ShortKindsFirst(3600.0, 0.3)
    visit = held("a", 0.0, 500)
    queue.admitted(visit, 0.0)
    queue.admitted(held("a", 100.0, 40_000, is_paused=True), 150.0)
    queue.ended(visit.session, 200.0)
    assert queue.lengths.mean_s == 200.0


def test_sessions_that_are_gone_are_forgotten():
    queue = ShortKindsFirst(3600.0, 0.3)
    for i in range(1000):
        queue.admitted(held(f"s{i}", 0.0, 500), float(i))
        queue.watched(ActiveSet(), float(i))
    assert len(queue._started) <= 65


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1e6)), max_size=50),
    st.integers(0, 10**7),
)
def test_expectations_stay_within_what_was_seen(seen, first_tokens):
    lengths = SessionLengths()
    for tokens, seconds in seen:
        lengths.ended(tokens, seconds)
    most = max((s for _, s in seen), default=0.0)
    assert 0.0 <= lengths.expected_s(first_tokens) <= most * (1 + 1e-9)
    assert 0.0 <= lengths.handicap(first_tokens) <= 1.0


def test_the_longest_kinds_are_told_apart_up_to_a_bound() -> None:
    lengths = SessionLengths()
    for _ in range(20):
        for first_tokens, seconds in ((100, 50.0), (20_000, 600.0), (70_000, 2400.0)):
            lengths.ended(first_tokens, seconds)
    assert lengths.handicap(20_000) < lengths.handicap(70_000) == pytest.approx(0.6)
