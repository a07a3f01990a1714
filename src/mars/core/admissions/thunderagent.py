# SPDX-License-Identifier: Apache-2.0
"""ThunderAgent's admission of new programs by token capacity, best fit every five seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.forecast import Projection
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session
from mars.core.packing import fitting, in_arrival_order, overdue_first
from mars.core.policy import BaseAdmission, admission_policies

PER_SESSION_TOKENS = 100
NUM_BLIND = 2


@admission_policies.register("thunderagent")
class ThunderAgent(BaseAdmission):
    """Admit while reasoning plus weighted acting tokens fit the pool; short ones first.

    ``used = reasoning tokens + w x acting tokens + 100 x sessions <= pool``. An arrival is
    admitted at once when nobody is held and it fits. Every ``interval_s`` the held ones are
    resumed as far as they fit: paused ones whose next turn waits, then new ones, then paused
    ones still in their tools, each in ascending tokens; after ``force_s`` anyway. If the sum
    exceeds the pool, acting sessions are paused in ascending tokens until it does not, then
    reasoning ones at the end of their turn.

    Source: ThunderAgent, 2602.13692, and its public proxy (5 s, 1800 s, 100 tokens).
    Deviations: tokens come from the engine, not from characters; what ``core.pauses`` bounds.

    Ignores: shared prefixes, growth, idleness, CPU load.
    """

    def __init__(
        self, acting_weight: float = 1.0, *, interval_s: float = 5.0, force_s: float = 1800.0
    ) -> None:
        self.acting_weight = float(acting_weight)
        self.interval_s = interval_s
        self.force_s = self.overtaking_s = force_s
        self.projection = Projection()
        self._resumed_at = self._paused_at = -math.inf

    def window(self, load: Load, now: float) -> float:
        return math.inf if self.projection.saw(load) else float(NUM_BLIND)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        queue = in_arrival_order(held)
        if not self.projection.saw(load):
            chosen = queue[: max(0, NUM_BLIND - len(active))]
        elif not len(active):
            chosen = [min(queue, key=_kind)] if queue else []
        elif len(queue) == 1 or now - self._resumed_at >= self.interval_s:
            self._resumed_at = now
            chosen = fitting(
                sorted(queue, key=_kind),
                budget=self.projection.pool_tokens - self._used(active),
                slots=math.inf,
                size=lambda h: h.num_prompt_tokens + PER_SESSION_TOKENS,
                may_pass=lambda h: True,
            )
        else:
            chosen = []
        chosen = overdue_first(queue, chosen, now, self.force_s)
        for h in chosen:
            self.projection.admitted(h)
        return [h.session.session_id for h in chosen]

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        if now - self._paused_at < self.interval_s or not self.projection.pool_tokens:
            return [s.session_id for s in active.sessions.values() if s.is_pausing]
        self._paused_at = now
        over = self._used(active) - self.projection.pool_tokens
        stopped: list[str] = []
        for session in sorted(active.sessions.values(), key=self._loss):
            if over <= 0:
                break
            over -= self._tokens(session)
            stopped.append(session.session_id)
        if stopped:
            self._resumed_at = now
        return stopped

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        self.projection.saw(load)
        self.projection.watched(active)

    def on_end(self, session: Session, now: float) -> None:
        self.projection.ended(session)

    def state(self) -> dict[str, Any]:
        return {"mode": "thunderagent", "pool_tokens": self.projection.pool_tokens}

    def _used(self, active: ActiveSet) -> float:
        return sum(self._tokens(session) for session in active.sessions.values())

    def _tokens(self, session: Session) -> float:
        tokens = self.projection.present_tokens(session)
        is_acting = session.activity is Activity.ACTING
        return tokens * (self.acting_weight if is_acting else 1.0) + PER_SESSION_TOKENS

    def _loss(self, session: Session) -> tuple[bool, int, str]:
        """Who is paused first: acting before reasoning, each in ascending tokens."""
        tokens = self.projection.present_tokens(session)
        return session.activity is not Activity.ACTING, tokens, session.session_id


def _kind(held: HeldSession) -> tuple[int, int]:
    """Who is resumed first: paused and waiting, new, paused and in a tool; the short ones."""
    kind = 1 if not held.is_paused else 0 if held.is_waiting else 2
    return kind, held.num_prompt_tokens
