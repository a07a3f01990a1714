# SPDX-License-Identifier: Apache-2.0
"""Who claims memory, kept in order from plan to plan: each step changes only a few claims."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from operator import attrgetter

from mars.core.model import Session, Turn


@dataclass(slots=True)
class Share:
    """What one session takes; lives in ``Session.policy_state``."""

    first_tokens: int = 0
    """Prompt of its first turn, which tells what kind of session it is."""
    shared_tokens: int = 0
    """Hit of its first turn: a prefix that others have too, charged to nobody."""
    place: float = 0.0
    """Its place as it was when it was last asked for, and the version of the lengths then."""
    place_version: int = -1

    @staticmethod
    def of(session: Session) -> Share:
        """The session's own, or an empty one."""
        state = session.policy_state
        return state if isinstance(state, Share) else Share()


@dataclass(slots=True)
class Claim:
    """The claim of a waiting turn, or of an idle session where ``turn`` is None.

    ``blocks`` and ``recompute_s`` are as of ``tokens`` and ``shared_tokens``: whoever plans
    renews them when those changed, what is shared only while a turn waits. ``since`` is when
    an idle session's last turn finished, infinite if none has. ``round_index`` is the last plan
    that saw the turn wait.
    """

    key: tuple[float, str]
    session: Session
    share: Share
    turn: Turn | None
    round_index: int = 0
    is_gone: bool = False
    since: float = inf
    tokens: int = -1
    shared_tokens: int = 0
    blocks: float = 0.0
    recompute_s: float = 0.0


class Claims:
    """All claims by (place, id), smallest first.

    Args:
        place: of a session; when it changes, :meth:`move` must be called.
    """

    def __init__(self, place: Callable[[Session], float]) -> None:
        self.idle: dict[str, Claim] = {}
        self._place = place
        self._waiting: dict[str, Claim] = {}
        self._order: list[Claim] = []
        self._new_idle: dict[str, Claim] = {}
        self._is_any_gone = False
        self._round_index = 0

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._order)

    def add_idle(self, session: Session) -> None:
        """The session has no turn in the engine any more."""
        self.remove_idle(session.session_id)
        claim = self._claim(session.session_id, session, None)
        self.idle[session.session_id] = self._new_idle[session.session_id] = claim

    def remove_idle(self, session_id: str) -> None:
        """The session has a turn again, or is over."""
        claim = self.idle.pop(session_id, None)
        if claim is not None and self._new_idle.pop(session_id, None) is None:
            self._drop(claim)

    def renew(self, turns: Iterable[Turn]) -> list[Turn]:
        """Take in which turns wait now; returns those that run."""
        self._round_index = round_index = self._round_index + 1
        waiting, running, num_waiting = self._waiting, list[Turn](), 0
        new = list(self._new_idle.values())
        self._new_idle.clear()
        for turn in turns:
            if turn.is_running or turn.is_loading:
                running.append(turn)
                continue
            num_waiting += 1
            claim = waiting.get(turn.request_id)
            if claim is None or claim.turn is not turn:
                if claim is not None:
                    self._drop(claim)
                claim = waiting[turn.request_id] = self._claim(turn.request_id, turn.session, turn)
                new.append(claim)
            claim.round_index = round_index
        if len(waiting) > num_waiting:
            for request_id in [r for r, c in waiting.items() if c.round_index != round_index]:
                self._drop(waiting.pop(request_id))
        if self._is_any_gone:
            self._order = [claim for claim in self._order if not claim.is_gone]
            self._is_any_gone = False
        for claim in new:
            insort(self._order, claim, key=_KEY)
        return running

    def move(self) -> None:
        """Places have changed: sort anew."""
        for claim in (*self._order, *self._new_idle.values()):
            claim.key = (self._place(claim.session), claim.key[1])
        self._order.sort(key=_KEY)

    def _claim(self, name: str, session: Session, turn: Turn | None) -> Claim:
        since = session.last_turn_finished_at
        return Claim(
            (self._place(session), name),
            session,
            Share.of(session),
            turn,
            since=inf if since is None else since,
        )

    def _drop(self, claim: Claim) -> None:
        claim.is_gone = self._is_any_gone = True


_KEY = attrgetter("key")
