# SPDX-License-Identifier: Apache-2.0
"""Intervals: how far a difference can be trusted.

Two runs of one trace are paired by session, so the paired bootstrap (BCa; Efron 1987, as
``scipy.stats.bootstrap``) applies. Few seeds get Student's t interval of their mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 4999
"""scipy's default of 9,999 halved: bounds move by under 1% of their width at n = 16."""
MIN_PAIRS = 3
"""Fewer pairs say nothing about their spread."""


class Interval(msgspec.Struct, kw_only=True, frozen=True):
    """An estimate and its interval; bounds are null where the sample is too small."""

    estimate: float
    low: float | None
    high: float | None
    num_samples: int
    confidence: float = CONFIDENCE

    @property
    def is_decided(self) -> bool:
        """Of a ratio: whether the interval excludes 1, that is, no difference."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """mean(theirs) / mean(ours) over paired values: above 1, ours is lower by that factor.

    Raises:
        ValueError: the two are not of equal length, or empty.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"pairs expected, got {len(ours)} and {len(theirs)} values")

    def statistic(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(y, axis=axis) / np.mean(x, axis=axis)

    return _paired(ours, theirs, statistic, seed)


def mean_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """mean(ours - theirs) over paired values, in their unit.

    Raises:
        ValueError: the two are not of equal length, or empty.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"pairs expected, got {len(ours)} and {len(theirs)} values")

    def statistic(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    return _paired(ours, theirs, statistic, seed)


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one value per seed with Student's t interval.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    estimate, num = float(np.mean(values)), len(values)
    if num < 2:
        return Interval(estimate=estimate, low=None, high=None, num_samples=num)
    from scipy import stats  # in the bench extra; the simulator's table does without

    half = float(stats.sem(values)) * float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, num_samples=num)


def _paired(
    x: Sequence[float], y: Sequence[float], statistic: Callable[..., Any], seed: int
) -> Interval:
    left, right = np.asarray(x, float), np.asarray(y, float)
    estimate = float(statistic(left, right))
    if len(left) < MIN_PAIRS:
        return Interval(estimate=estimate, low=None, high=None, num_samples=len(left))
    from scipy import stats

    with warnings.catch_warnings():
        # Equal pairs have no spread: scipy warns and gives NaN, answered below.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (left, right),
            statistic,
            paired=True,
            vectorized=True,
            method="BCa",
            n_resamples=NUM_RESAMPLES,
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = (b if math.isfinite(b) else estimate for b in (float(found.low), float(found.high)))
    return Interval(estimate=estimate, low=low, high=high, num_samples=len(left))
