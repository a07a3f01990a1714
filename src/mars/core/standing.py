# SPDX-License-Identifier: Apache-2.0
"""What stands before a session, and what behind: amounts of others, summed by place."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Standing:
    """Amounts (tokens, blocks) by place, smallest first.

    O(n log n) to make, O(log n) an answer.

    Args:
        amounts: (place, amount) of each.
    """

    def __init__(self, amounts: Iterable[tuple[float, float]]) -> None:
        by_place = sorted(amounts)
        self._places = [place for place, _ in by_place]
        self._sums = list(accumulate((amount for _, amount in by_place), initial=0.0))

    def before(self, place: float) -> float:
        """Of those with an earlier place."""
        return self._sums[bisect_left(self._places, place)]

    def behind(self, place: float) -> float:
        """Of those with a later place."""
        return self._sums[-1] - self._sums[bisect_right(self._places, place)]

    def weighed(self, place: float, weight: float) -> float:
        """Of all, those that do not stand before that place with this weight (0..1)."""
        before = self.before(place)
        return before + weight * (self.total - before)

    @property
    def total(self) -> float:
        """Of all."""
        return self._sums[-1]
