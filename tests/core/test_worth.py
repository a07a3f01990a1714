# SPDX-License-Identifier: Apache-2.0
"""Whose free cached blocks go first, kept from step to step."""

from __future__ import annotations

import random
from collections.abc import Collection

from mars.core.worth import SHARED, Revalued, WorthOrder


class Owners:
    """An order over settable values; ``tells`` whose value changed, or says nothing of it."""

    def __init__(self, *, tells: bool) -> None:
        self.values: dict[str, float] = {}
        self.now = 0.0
        self.revalued = Revalued()
        self.asked = 0
        take = self.revalued.take if tells else nothing
        self.order = WorthOrder(self.value, lambda: self.now, take)

    def value(self, owner: str) -> float:
        self.asked += 1
        return self.values[owner]

    def set(self, owner: str, value: float) -> None:
        self.values[owner] = value
        self.revalued.add(owner)


def nothing() -> Collection[str] | None:
    return None


def test_told_changes_give_the_order_of_a_full_ranking() -> None:
    rng, told, full = random.Random(0), Owners(tells=True), Owners(tells=False)
    for _ in range(3000):
        name, value = f"s{rng.randrange(30)}", float(rng.randrange(10))
        pick = rng.random()
        told.now = full.now = told.now + 0.02
        for owners in (told, full):
            owners.set(name, value)
            if pick < 0.3 and name not in owners.order:
                owners.order.add(name)
            elif pick < 0.5 and name in owners.order:
                owners.order.drop(name)
        if told.order.as_it_is():
            assert told.order.owners() == full.order.owners()
            assert told.order.least() == full.order.least()


def test_shared_blocks_go_last() -> None:
    owners = Owners(tells=True)
    owners.values["dear"] = 1e18
    owners.order.add(SHARED)
    owners.order.add("dear")
    assert owners.order.owners() == ["dear", SHARED]


def test_a_told_change_asks_for_nobody_else() -> None:
    owners = Owners(tells=True)
    for i in range(100):
        owners.set(f"s{i}", float(i))
        owners.order.add(f"s{i}")
    owners.order.least()
    owners.set("s50", -1.0)
    owners.asked, owners.now = 0, 1.0
    assert owners.order.least() == (-1.0, "s50")
    assert owners.asked == 1


def test_what_is_remembered_of_changes_is_bounded() -> None:
    revalued = Revalued()
    revalued.update(f"s{i}" for i in range(Revalued.MOST))
    assert len(revalued.take() or ()) == Revalued.MOST
    for i in range(10 * Revalued.MOST):
        revalued.add(f"s{i}")
    assert revalued.take() is None
    assert len(revalued.take() or ()) < Revalued.MOST
