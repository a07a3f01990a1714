# SPDX-License-Identifier: Apache-2.0
"""Admission of MARS, ours: a working set that discounts the idle, and paced CPU growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.cpugate import CpuGate
from mars.core.forecast import Projection
from mars.core.hosttier import is_roomy
from mars.core.lengths import ShortKindsFirst
from mars.core.model import ActiveSet, HeldSession, Load, Session
from mars.core.packing import fitting, in_arrival_order
from mars.core.policy import BaseAdmission, admission_policies

NUM_BLIND = 2


@admission_policies.register("mars")
class Mars(BaseAdmission):
    """Admit what the memory will carry, and no faster than the CPUs show that they follow.

    KV: ``sum of w x (context + ahead) over active + (first prompt + ahead) <= target x
    pool``; w is ``idle_weight`` for who acts for over 10 s, falling after 60, else 1; ahead:
    half the mean growth of the last 40 sessions that ended or compacted. Active
    ones of a later place count ``behind_weight``, within ``most_target`` x pool for all: policy
    ``mars`` pauses them between turns. In front of a stock engine ``working-set`` is better.
    CPU: as many as the tool slots feed, then one every ``pace_s``, then none (:class:`CpuGate`).

    Order: ``held since + most_lead_s x handicap``, short kinds first (:class:`ShortKindsFirst`).
    Others that fit pass one that does not for ``pass_share`` of its expected length, at most
    ``overdue_s``; who is held for ``force_s`` is admitted. Ours, built on 2604.26963.
    Ignores: shared prefixes, measured waste (moving the target by it measured worse).
    """

    def __init__(
        self,
        target: float = 1.5,
        *,
        idle_weight: float = 0.3,
        behind_weight: float = 0.25,
        most_target: float = 2.0,
        pace_s: float = 30.0,
        most_lead_s: float = 3600.0,
        pass_share: float = 0.3,
        overdue_s: float = 300.0,
        force_s: float = 1800.0,
    ) -> None:
        if target <= 0:
            raise ValueError(f"mars:{target}: the share of the pool must be positive")
        self.target, self.most_target = float(target), max(most_target, float(target))
        self.idle_weight, self.behind_weight = idle_weight, behind_weight
        self.overdue_s, self.force_s, self.overtaking_s = overdue_s, force_s, force_s
        self.projection = Projection()
        self.cpus = CpuGate(pace_s)
        self.queue = ShortKindsFirst(most_lead_s, pass_share)

    def window(self, load: Load, now: float) -> float:
        return math.inf if self.projection.saw(load) else float(NUM_BLIND)

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        self.projection.saw(load)
        self.projection.watched(active)
        self.queue.watched(active, now)
        self.cpus.update(load, len(active), now)

    def on_end(self, session: Session, now: float) -> None:
        self.projection.ended(session)
        self.queue.ended(session, now)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        queue = self.queue.ordered(held)
        if not self.projection.saw(load):
            chosen = queue[: max(0, NUM_BLIND - len(active))]
        else:
            chosen = self._fit(queue, active, now)
        oldest = in_arrival_order(held)[:1]
        if oldest and now - oldest[0].held_since > self.force_s:
            chosen = oldest + [h for h in chosen if h is not oldest[0]]
        elif not len(active) and not chosen:
            chosen = queue[:1]
        for h in chosen:
            self.projection.admitted(h)
            self.queue.admitted(h, now)
            self.cpus.admitted(now)
        return [h.session.session_id for h in chosen]

    def _fit(
        self, queue: Sequence[HeldSession], active: ActiveSet, now: float
    ) -> list[HeldSession]:
        known, queued, weight = self.projection, self.queue, self.behind_weight
        most = self.target * known.pool_tokens
        if is_roomy(known.host_tokens, known.pool_tokens):  # which keeps whoever is paused
            standing, most = queued.standing([]), math.inf
            budget = known.host_tokens - known.working_set_tokens(active, now)
        else:
            standing = queued.standing(known.needs(active, now, idle_weight=self.idle_weight))
            budget = self.most_target * known.pool_tokens - standing.total
        return fitting(
            queue,
            budget=budget,
            slots=self.cpus.room(len(active), now) if len(active) else math.inf,
            size=known.held_tokens,
            may_pass=lambda h: now - h.held_since <= queued.patience_s(h, self.overdue_s),
            fits=lambda h, given: given + standing.weighed(queued.place(h), weight) <= most,
        )

    def state(self) -> dict[str, Any]:
        return {
            "mode": "cpu" if self.cpus.is_closed else "working_set",
            "target": self.target,
            "pool_tokens": self.projection.pool_tokens,
            "cpu_backlog": self.cpus.backlog.value,
            "is_cpu_pressed": self.cpus.is_closed,
        }
