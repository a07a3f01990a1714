# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mars.bench.stats import mean_difference, mean_over_seeds, ratio_of_means


def test_a_clear_speed_up_is_decided_and_contains_the_truth() -> None:
    rng = np.random.default_rng(1)
    ours = rng.gamma(4.0, 20.0, size=60)
    theirs = 3.0 * ours * rng.normal(1.0, 0.1, size=60)
    got = ratio_of_means(list(ours), list(theirs))
    assert got.low is not None
    assert got.high is not None
    assert got.low < 3.0 < got.high
    assert got.is_decided
    assert got.high - got.low < 0.5


def test_pairing_removes_the_spread_between_sessions() -> None:
    rng = np.random.default_rng(2)
    ours = rng.gamma(1.0, 100.0, size=40)
    paired = mean_difference(list(ours), list(ours + 5.0 + rng.normal(0, 0.1, 40)))
    assert paired.low is not None
    assert paired.high is not None
    assert paired.high - paired.low < 0.2
    assert paired.estimate == pytest.approx(-5.0, abs=0.1)


def test_identical_runs_are_not_decided() -> None:
    got = ratio_of_means([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (got.estimate, got.low, got.high) == (1.0, 1.0, 1.0)
    assert not got.is_decided


def test_two_pairs_give_an_estimate_without_bounds() -> None:
    got = ratio_of_means([1.0, 1.0], [2.0, 4.0])
    assert (got.estimate, got.low, got.is_decided) == (3.0, None, False)


def test_same_seed_same_bounds() -> None:
    x, y = [1.0, 2.0, 4.0, 8.0], [3.0, 2.0, 9.0, 9.0]
    assert ratio_of_means(x, y, seed=3) == ratio_of_means(x, y, seed=3)


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0, 2.0])])
def test_unpaired_values_are_refused(pair: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="pairs expected"):
        ratio_of_means(*pair)


def test_mean_over_seeds_is_student_t() -> None:
    got = mean_over_seeds([9.0, 10.0, 11.0])
    assert got.estimate == 10.0
    assert got.low == pytest.approx(10.0 - 4.302653 / 3**0.5, abs=1e-5)
    assert mean_over_seeds([4.0]).low is None
    with pytest.raises(ValueError, match="no values"):
        mean_over_seeds([])
