# SPDX-License-Identifier: Apache-2.0
"""The queue of held sessions: who has a place, who attends it, who went away.

A place outlives the request that waits on it: a client whose time is up, or whose
connection broke, finds it again when it comes back within ``PLACE_KEPT_S``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from mars.core.model import HeldSession, Session

PLACE_KEPT_S = 120.0
"""How long an unattended place in the queue is kept: agents that retry come back within
the 64 s of the longest known back-off (OpenHands), and need some slack (chosen)."""

Beat = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Place:
    """A held session's place in the queue, and the requests that wait on it."""

    held: HeldSession
    waiters: list[asyncio.Future[Session]] = field(default_factory=list[asyncio.Future[Session]])
    is_announced: bool = False
    away_since: float | None = None
    """When the last of its clients left; None while one attends, or before any came."""
    waits_since: float | None = None
    """When the oldest of its waiting requests came."""

    @property
    def session_id(self) -> str:
        """Whose place it is."""
        return self.held.session.session_id


class HoldSpentError(Exception):
    """A request was held as long as its client bears."""


class Places:
    """Places in order of arrival, those of paused sessions among them.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[str, Place] = {}
        self._away: dict[str, Place] = {}
        """The absent ones, who left first first."""
        self.paused: dict[str, Place] = {}
        """Places of paused sessions, attended or not."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._places

    def get(self, session_id: str) -> Place | None:
        """The place of this session, if it has one."""
        return self._places.get(session_id)

    def add(self, held: HeldSession) -> Place:
        """A place at the end of the queue."""
        place = self._places[held.session.session_id] = Place(held)
        if held.is_paused:
            self.paused[place.session_id] = place
        return place

    def pop(self, session_id: str) -> Place | None:
        """Give up a place; what becomes of its waiters is for the caller to say."""
        self._away.pop(session_id, None)
        self.paused.pop(session_id, None)
        return self._places.pop(session_id, None)

    def candidates(self) -> list[HeldSession]:
        """Who may be let in: sessions with a waiting request, and paused ones."""
        return [p.held for p in self._places.values() if p.waiters or p.held.is_paused]

    def attend(self, place: Place) -> asyncio.Future[Session]:
        """A request waits on this place from now on."""
        waiter: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        if not place.waiters:
            place.waits_since = self._clock()
        place.waiters.append(waiter)
        place.held.is_waiting = True
        self._attended(place)
        return waiter

    def leave(self, place: Place, waiter: asyncio.Future[Session]) -> None:
        """A request waits no longer; the place is kept for its return."""
        if waiter in place.waiters:
            place.waiters.remove(waiter)
        if not place.waiters and self._places.get(place.session_id) is place:
            self.go_away(place)

    def go_away(self, place: Place) -> None:
        """Nobody attends this place any more."""
        place.away_since = self._clock()
        place.waits_since = None
        place.held.is_waiting = False
        self._away[place.session_id] = place

    def _attended(self, place: Place) -> None:
        place.away_since = None
        self._away.pop(place.session_id, None)

    def absent(self, longer_than_s: float) -> list[str]:
        """Sessions whose clients left so long ago, who left first first."""
        limit = self._clock() - longer_than_s
        found: list[str] = []
        for session_id, place in self._away.items():
            if (place.away_since or 0.0) > limit:
                break
            found.append(session_id)
        return found

    async def wait(
        self,
        place: Place,
        waiter: asyncio.Future[Session],
        beat: Beat | None,
        *,
        keepalive_s: float,
        budget_s: float | None,
    ) -> Session:
        """Return when the session is let in.

        Args:
            place: what is waited on.
            waiter: what :meth:`attend` gave.
            beat: sends a sign of life, if the client knows any.
            keepalive_s: between two of them.
            budget_s: how long the client bears to be held; None: without end.

        Raises:
            HoldSpentError: the budget is spent; the place is kept.
        """
        try:
            async with asyncio.timeout(budget_s):
                while not waiter.done():
                    timeout = None if beat is None else keepalive_s
                    await asyncio.wait((waiter,), timeout=timeout)
                    if beat is not None and not waiter.done():
                        await beat()
            return waiter.result()
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return waiter.result()  # let in at the last moment
            self.leave(place, waiter)
            raise HoldSpentError from None
