# SPDX-License-Identifier: Apache-2.0
"""MORI's placement: the busiest sessions have the GPU's memory, then the host's, the rest waits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from mars.core.forecast import Projection
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session
from mars.core.packing import in_arrival_order, overdue_first
from mars.core.policy import BaseAdmission, admission_policies

NUM_BLIND = 2
NUM_STEPS = 5


@admission_policies.register("mori")
class Mori(BaseAdmission):
    """Every ``interval_s``: by ascending idleness, as many sessions as the GPU's memory holds.

    ``idleness = acting / (acting + reasoning)`` seconds over the last five steps, the tool
    under way included; 0 for a new session. Who is active and no longer among them is paused
    at the end of its turn (its KV stays in host memory), who is among them and paused goes on.
    Nobody goes on in the interval in which somebody is paused, and who stays in its place is
    not moved. Sessions that fit neither memory are not admitted; after ``force_s`` anyway.

    Source: MORI, 2606.00866 (no code is public): idleness over k = 5 steps, 5 s, three tiers,
    moves only on mismatch. Deviations: waiting inside the engine counts as reasoning; host
    memory is vLLM's, which evicts by recency; what ``core.pauses`` bounds; 1800 s are
    ThunderAgent's, on which MORI builds.

    Ignores: growth, shared prefixes, CPU load.
    """

    def __init__(self, *, interval_s: float = 5.0, force_s: float = 1800.0) -> None:
        self.interval_s = interval_s
        self.force_s = self.overtaking_s = force_s
        self.projection = Projection()
        self._steps: dict[str, deque[list[float]]] = {}
        self._placed_at = self._ticked_at = -math.inf
        self._paused: list[str] = []

    def window(self, load: Load, now: float) -> float:
        return math.inf if self.projection.saw(load) else float(NUM_BLIND)

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        self.projection.saw(load)
        self.projection.watched(active)
        passed_s = min(now - self._ticked_at, self.interval_s)
        self._ticked_at = now
        for session_id, session in active.sessions.items():
            steps = self._steps.setdefault(session_id, deque(maxlen=NUM_STEPS))
            while not steps or steps[-1][2] < session.num_turns:
                steps.append([0.0, 0.0, session.num_turns if not steps else steps[-1][2] + 1])
            steps[-1][session.activity is Activity.ACTING] += passed_s

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        pool = self.projection.pool_tokens
        if not pool or now - self._placed_at < self.interval_s:
            return [name for name in self._paused if name in active.sessions]
        self._placed_at = now
        order = sorted(active.sessions.values(), key=lambda s: (self._idleness(s), s.arrival_time))
        self._paused = []
        for session in order:
            pool -= self.projection.present_tokens(session)
            if pool < 0:
                self._paused.append(session.session_id)
        return self._paused

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        queue = in_arrival_order(held)
        if not self.projection.saw(load):
            chosen = queue[: max(0, NUM_BLIND - len(active))]
        elif self._paused and len(active):
            chosen = []
        else:
            chosen = self._fitting(queue, active)
        chosen = overdue_first(queue, chosen, now, self.force_s)
        for h in chosen:
            self.projection.admitted(h)
        return [h.session.session_id for h in chosen]

    def on_end(self, session: Session, now: float) -> None:
        self._steps.pop(session.session_id, None)
        self.projection.ended(session)

    def state(self) -> dict[str, Any]:
        return {"mode": "mori", "pool_tokens": self.projection.pool_tokens}

    def _fitting(self, queue: list[HeldSession], active: ActiveSet) -> list[HeldSession]:
        """Who waits and fits the GPU; a new one only if the host could take it in as well."""
        known = self.projection
        room = known.pool_tokens - sum(map(known.present_tokens, active.sessions.values()))
        away = sum(h.num_prompt_tokens for h in queue if h.is_paused)
        chosen: list[HeldSession] = []
        waiting = [h for h in queue if h.is_waiting]
        for h in sorted(waiting, key=lambda h: (not h.is_paused, self._idleness(h.session))):
            need = h.num_prompt_tokens
            is_homeless = not h.is_paused and known.host_tokens and away > known.host_tokens
            is_alone = not (len(active) or chosen)
            if (need <= room and not is_homeless) or is_alone:
                chosen.append(h)
                room -= need
        return chosen

    def _idleness(self, session: Session) -> float:
        steps = self._steps.get(session.session_id, ())
        acting_s, total_s = sum(s[1] for s in steps), sum(s[0] + s[1] for s in steps)
        return acting_s / total_s if total_s else 0.0
