# SPDX-License-Identifier: Apache-2.0
"""Whose free cached blocks are given away first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from math import inf

SHARED = "\0shared"
"""Owner of blocks that more than one session used: given away last."""


class Revalued:
    """Sessions whose worth changed since it was last asked for, bounded."""

    MOST = 256

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._all = False

    def add(self, session_id: str) -> None:
        """One."""
        self._ids.add(session_id)
        if len(self._ids) > self.MOST:
            self.add_all()

    def update(self, session_ids: Iterable[str]) -> None:
        """Some."""
        self._ids.update(session_ids)
        if len(self._ids) > self.MOST:
            self.add_all()

    def add_all(self) -> None:
        """Each of them may have changed."""
        self._all = True
        self._ids.clear()

    def take(self) -> Collection[str] | None:
        """Those added since the last call; None: all."""
        if self._all:
            self._all = False
            return None
        taken = self._ids
        if taken:
            self._ids = set()
        return taken


class WorthOrder:
    """Owners of free cached blocks, the least worth first; ties by name.

    As of the last owner that came or left, and never older than ``RERANK_S`` seconds when
    somebody is asked for. Where a policy says whose value changed only those move; else all
    are ranked anew. Shared by plug-in and simulator, which must agree.

    Args:
        value: what keeping a session's prefix is worth per block.
        clock: seconds.
        revalued: sessions whose value changed since the last call; None: any may have.
    """

    RERANK_S = 0.1

    def __init__(
        self,
        value: Callable[[str], float],
        clock: Callable[[], float],
        revalued: Callable[[], Collection[str] | None] | None = None,
    ) -> None:
        self._value = value
        self._clock = clock
        self._revalued = revalued or (lambda: None)
        self._value_of: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []
        self._new: dict[str, None] = {}
        self._has_changed = False
        self._ranked_at = -inf

    def __contains__(self, owner: str) -> bool:
        return owner in self._value_of or owner in self._new

    def add(self, owner: str) -> None:
        """It has free cached blocks now."""
        self._new[owner] = None
        self._has_changed = True

    def drop(self, owner: str) -> None:
        """Its last ones are used again."""
        self._take_out(owner)
        self._has_changed = True

    def emptied(self, owner: str) -> None:
        """Its last ones were given away; nothing else changed."""
        self._take_out(owner)

    def _take_out(self, owner: str) -> None:
        if owner in self._new:
            del self._new[owner]
            return
        value = self._value_of.pop(owner)
        del self._order[bisect_left(self._order, (value, owner))]

    def clear(self) -> None:
        """Nobody has any."""
        self._value_of.clear()
        self._order.clear()
        self._new.clear()

    def least(self) -> tuple[float, str]:
        """(value, owner) of the one whose blocks go first; there must be one."""
        self._renew()
        return self._order[0]

    def owners(self) -> list[str]:
        """All, the first to lose blocks first."""
        self._renew()
        return [owner for _, owner in self._order]

    def as_it_is(self) -> list[str]:
        """All by their present values; looking changes nothing."""
        return [owner for _, owner in sorted(map(self._entry, (*self._value_of, *self._new)))]

    def _renew(self) -> None:
        now = self._clock()
        if self._order and not self._has_changed and now - self._ranked_at < self.RERANK_S:
            return
        self._ranked_at, self._has_changed = now, False
        changed = self._revalued()
        if changed is None:
            self._order = sorted(map(self._entry, (*self._value_of, *self._new)))
            self._value_of = {owner: value for value, owner in self._order}
        else:
            for owner in changed:
                if owner in self._value_of:
                    self._take_out(owner)
                    self._new[owner] = None
            for entry in map(self._entry, self._new):
                self._value_of[entry[1]] = entry[0]
                insort(self._order, entry)
        self._new.clear()

    def _entry(self, owner: str) -> tuple[float, str]:
        return (inf if owner == SHARED else self._value(owner), owner)
