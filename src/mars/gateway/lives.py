# SPDX-License-Identifier: Apache-2.0
"""Lives of sessions: an id that is used again after its end starts the next generation."""

from __future__ import annotations

from collections import OrderedDict

from mars.core.model import Session, SessionState
from mars.gateway.identity import Identity

GENERATIONS_KEPT = 20_000
"""Ended ids whose generation is remembered, about 2 MB of them (chosen)."""


class Lives:
    """Begins sessions, with a generation that fences off what comes late of an earlier one."""

    def __init__(self) -> None:
        self._generations: OrderedDict[str, int] = OrderedDict()

    def begin(self, identity: Identity, weight: float, now: float) -> Session:
        """A session that arrives now, held until it is let in."""
        return Session(
            identity.session_id,
            arrival_time=now,
            tenant=identity.tenant,
            weight=weight,
            generation=self._generations.get(identity.session_id, -1) + 1,
            parent=identity.parent,
            state=SessionState.HELD,
        )

    def ended(self, session: Session) -> None:
        """The session is over."""
        session.state = SessionState.ENDED
        self._generations[session.session_id] = session.generation
        self._generations.move_to_end(session.session_id)
        if len(self._generations) > GENERATIONS_KEPT:
            self._generations.popitem(last=False)
