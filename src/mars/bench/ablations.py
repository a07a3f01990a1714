# SPDX-License-Identifier: Apache-2.0
"""`mars` with one of its mechanisms taken away, to be named by dotted path in an experiment."""

from __future__ import annotations

from mars.core.model import Turn
from mars.core.policies.mars import Mars
from mars.core.policy import Rank
from mars.core.residency import ResidencyRules
from mars.core.retention import PrefillCost


class WithoutValueEviction(Mars):
    """Cached blocks leave in LRU order, whatever they are worth."""

    name = "mars-without-value-eviction"
    evicts_by_value = False


class WithoutShrinking(Mars):
    """A prefill chunk that does not fit preempts somebody instead of shrinking."""

    name = "mars-without-shrinking"
    shrinks_chunks = False


class WithoutPrefillBound(Mars):
    """Prefills start though the unfinished ones need the memory that they would take."""

    name = "mars-without-prefill-bound"
    bounds_partial_prefills = False


class WithoutOrder(Mars):
    """Turns are served in the order in which they arrive."""

    name = "mars-without-order"

    def rank(self, turn: Turn, now: float) -> Rank:
        return (turn.arrival_time,)


class WithoutKinds(Mars):
    """Sessions have memory in the order in which they arrive, whatever their kind.

    The admission's half is its option ``most_lead_s = 0``.
    """

    name = "mars-without-kinds"

    def __init__(self, *, cost: PrefillCost | None = None) -> None:
        super().__init__(cost=cost, rules=ResidencyRules(most_lead_s=0.0))
