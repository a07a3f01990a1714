# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.bench import ablations
from mars.core.model import Session, Turn
from mars.core.policies.mars import Mars


@pytest.mark.parametrize(
    ("ablation", "mechanism"),
    [
        (ablations.WithoutValueEviction, "evicts_by_value"),
        (ablations.WithoutShrinking, "shrinks_chunks"),
        (ablations.WithoutPrefillBound, "bounds_partial_prefills"),
    ],
)
def test_an_ablation_takes_away_what_the_whole_has_and_nothing_else(
    ablation: type[Mars], mechanism: str
):
    flags = ("evicts_by_value", "shrinks_chunks", "bounds_partial_prefills", "has_levels")
    whole, part = Mars(), ablation()
    assert [f for f in flags if getattr(whole, f) != getattr(part, f)] == [mechanism]


def test_without_order_the_one_who_came_first_is_first():
    long = Turn("a", Session("s", arrival_time=5.0), 0, arrival_time=5.0, num_prompt_tokens=90_000)
    short = Turn("b", Session("t", arrival_time=6.0), 0, arrival_time=6.0, num_prompt_tokens=100)
    policy = ablations.WithoutOrder()
    assert policy.rank(long, 7.0) < policy.rank(short, 7.0)
    assert Mars().rank(short, 7.0) < Mars().rank(long, 7.0)


def test_without_kinds_memory_goes_by_arrival():
    whole, part = Mars().residency, ablations.WithoutKinds().residency
    session = Session("s", arrival_time=5.0)
    assert part.place(session) == 5.0
    assert whole.place(session) > 5.0
