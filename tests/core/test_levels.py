# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.levels import Levels

feedback = st.integers(0, 3)
tokens = st.integers(0, 500_000)
waits = st.floats(0.0, 1.0e9)


@pytest.mark.parametrize(
    ("num_tokens", "level"),
    [(0, 0), (2048, 0), (2049, 1), (8192, 1), (8193, 2), (32768, 2), (32769, 3), (10**9, 3)],
)
def test_bounds_are_inclusive(num_tokens, level):
    assert Levels().of(num_tokens) == level


def test_quanta_shrink_with_the_level():
    assert [Levels().quantum(level) for level in range(4)] == [2048, 1024, 512, 256]


@given(feedback, tokens, waits, waits)
def test_waiting_only_ever_lifts(level, remaining, a, b):
    levels = Levels()
    early, late = sorted((a, b))
    assert levels.effective(level, remaining, late) <= levels.effective(level, remaining, early)


@given(feedback, tokens)
def test_everybody_reaches_the_first_level(level, remaining):
    assert Levels().effective(level, remaining, 3 * 30.0) == 0


def test_one_step_of_ageing_takes_30_s():
    levels = Levels()
    assert levels.effective(2, 0, 29.9) == 2
    assert levels.effective(2, 0, 30.0) == 1
    assert levels.effective(0, 100_000, 59.0) == 2


def test_demotion_stops_at_the_last_level():
    assert Levels().demoted(0) == 1
    assert Levels().demoted(3) == 3


@pytest.mark.parametrize(
    "options",
    [{"quanta_tokens": (1, 2)}, {"bounds_tokens": (3, 2, 1)}, {"ageing_s": 0.0}],
)
def test_impossible_levels_are_refused(options):
    with pytest.raises(ValueError, match="levels"):
        Levels(**options)
