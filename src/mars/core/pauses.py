# SPDX-License-Identifier: Apache-2.0
"""The explicit pause of active sessions under overload: at turn boundaries, and bounded.

What an :class:`~mars.core.policy.AdmissionPolicy` asks for in ``pause`` is carried out here,
for the gateway and the simulator alike. Nothing that runs is stopped: a session leaves the
active set between two turns, its KV becomes the first to be evicted, and its next request
waits until the policy admits it again. Whatever a policy asks for,

- the last active session is never paused;
- a session finishes a turn between two pauses;
- all pauses of a session together last at most ``limit_s``, then it is resumed, and never
  paused again.
"""

from __future__ import annotations

from collections.abc import Iterable

from mars.core.model import ActiveSet, HeldSession, Load, Session, SessionState
from mars.core.policy import AdmissionPolicy

LIMIT_S = 1800.0
"""After so long ThunderAgent's public proxy resumes a program whatever the load."""


class Pauses:
    """Who is stopped, who may be, and who must go on.

    Args:
        limit_s: most seconds that a session is paused for, all its pauses together.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s

    def choose(
        self, policy: AdmissionPolicy, active: ActiveSet, load: Load, now: float
    ) -> list[Session]:
        """Sessions to stop now; those inside a turn are marked, and stop at its end."""
        named = policy.pause(active, load, now)
        for session in active.sessions.values():
            session.is_pausing = False
        stopped: list[Session] = []
        num_left = len(active)
        for session_id in named:
            session = active.sessions.get(session_id)
            if session is None or num_left <= 1 or not self._may_pause(session):
                continue
            num_left -= 1
            if session.num_open_turns:
                session.is_pausing = True
            else:
                stopped.append(session)
        return stopped

    def stop(self, session: Session, active: ActiveSet, now: float) -> HeldSession:
        """Take a session out of the active set; its place among the held ones."""
        del active.sessions[session.session_id]
        session.is_pausing = False
        session.state = SessionState.HELD
        return HeldSession(
            session,
            held_since=now,
            num_prompt_tokens=session.context_tokens,
            is_paused=True,
            is_waiting=False,
        )

    def resume(self, held: HeldSession, now: float) -> float:
        """Account for a pause that ends now; how long it was (s)."""
        session = held.session
        paused_s = max(0.0, now - held.held_since)
        session.paused_s += paused_s
        session.num_turns_at_resume = session.num_turns
        return paused_s

    def overdue(self, held: Iterable[HeldSession], now: float) -> list[str]:
        """Ids of paused sessions that must go on, whatever the policy says."""
        return [
            h.session.session_id
            for h in held
            if h.is_paused and h.session.paused_s + now - h.held_since >= self.limit_s
        ]

    def _may_pause(self, session: Session) -> bool:
        return session.paused_s < self.limit_s and session.num_turns > session.num_turns_at_resume
