# SPDX-License-Identifier: Apache-2.0
"""Admission by working set: KV tokens the active sessions will need, not their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.forecast import Projection
from mars.core.model import ActiveSet, HeldSession, Load, Session
from mars.core.packing import fitting, in_arrival_order
from mars.core.policy import BaseAdmission, admission_policies

NUM_BLIND = 2


@admission_policies.register("working-set")
class WorkingSet(BaseAdmission):
    """Admit while the projected peaks of the active sessions fit in the KV pool.

    ``sum over active of (context + ahead) + (first prompt + ahead) <= target x pool``;
    ahead: half the mean growth of the last 40 finished sessions. First come, first served,
    but one that does not fit is passed by others that do until it has waited ``overdue_s``;
    after ``force_s`` it is admitted anyway. Until the pool's size is known two are active.

    Source: DESIGN section 10 (target 1.3 and half the mean growth: as good as knowing).

    Ignores: measured waste, CPU load, shared prefixes.
    """

    def __init__(
        self, target: float = 1.3, *, overdue_s: float = 300.0, force_s: float = 1800.0
    ) -> None:
        if target <= 0:
            raise ValueError(f"working-set:{target}: the share of the pool must be positive")
        self.target = float(target)
        self.overdue_s = self.overtaking_s = overdue_s
        self.force_s = force_s
        self.projection = Projection()

    def window(self, load: Load, now: float) -> float:
        return math.inf if self.projection.saw(load) else float(NUM_BLIND)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        queue = in_arrival_order(held)
        if not self.projection.saw(load):
            chosen = queue[: max(0, NUM_BLIND - len(active))]
        else:
            chosen = self._chosen(queue, active, now)
        for h in chosen:
            self.projection.admitted(h)
        return [h.session.session_id for h in chosen]

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        self.projection.saw(load)
        self.projection.watched(active)

    def on_end(self, session: Session, now: float) -> None:
        self.projection.ended(session)

    def state(self) -> dict[str, Any]:
        return {
            "mode": "working_set",
            "target": self.target,
            "pool_tokens": self.projection.pool_tokens,
            "growth_tokens": self.projection.growth.mean_tokens,
        }

    def _chosen(self, queue: list[HeldSession], active: ActiveSet, now: float) -> list[HeldSession]:
        used = self.projection.working_set_tokens(active, now)
        chosen = fitting(
            queue,
            budget=self.target * self.projection.pool_tokens - used,
            slots=math.inf,
            size=self.projection.held_tokens,
            may_pass=lambda h: now - h.held_since <= self.overdue_s,
        )
        if (
            queue
            and queue[0] not in chosen
            and (not len(active) or now - queue[0].held_since > self.force_s)
        ):
            chosen.insert(0, queue[0])
        return chosen
