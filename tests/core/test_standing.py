# SPDX-License-Identifier: Apache-2.0
"""Amounts of others before and behind a place."""

import random

import pytest

from mars.core.standing import Standing


def test_equal_places_stand_neither_before_nor_behind():
    standing = Standing([(2.0, 10.0), (1.0, 5.0), (2.0, 1.0), (7.0, 100.0)])
    assert standing.before(2.0) == 5.0
    assert standing.behind(2.0) == 100.0
    assert standing.total == 116.0
    assert standing.weighed(2.0, 0.5) == 5.0 + 0.5 * 111.0
    assert Standing([]).before(3.0) == Standing([]).behind(3.0) == Standing([]).total == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_sum_over_those_before_and_behind(seed):
    rng = random.Random(seed)
    amounts = [(float(rng.randint(0, 9)), rng.random()) for _ in range(50)]
    standing = Standing(amounts)
    for place in (-1.0, 0.0, 4.0, 4.5, 9.0, 10.0):
        assert standing.before(place) == pytest.approx(sum(a for p, a in amounts if p < place))
        assert standing.behind(place) == pytest.approx(sum(a for p, a in amounts if p > place))
