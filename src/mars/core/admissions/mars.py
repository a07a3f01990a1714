# SPDX-License-Identifier: Apache-2.0
"""Admission of MARS, ours: a working set that discounts the idle, and paced CPU growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.forecast import Projection
from mars.core.model import ActiveSet, HeldSession, Load, Session
from mars.core.packing import fitting, in_arrival_order
from mars.core.policy import BaseAdmission, admission_policies
from mars.core.window import Smoothed

NUM_BLIND = 2
CPU_BUSY, CPU_SWAMPED = 0.75, 1.5
"""Tools running or queued per slot, from which one session at a time, and none, is let in."""


@admission_policies.register("mars")
class Mars(BaseAdmission):
    """Admit what the memory will carry, and no faster than the CPUs show that they follow.

    KV: ``sum of w x (context + ahead) over active + (first prompt + ahead) <= target x
    pool``; w is ``idle_weight`` for sessions that wait for a tool or a human for longer
    than 10 s, else 1; ahead: half the mean growth of the last 40 finished sessions. The
    target is loose because the scheduling policy ``mars`` pauses sessions between turns
    when they do not fit; in front of a stock engine ``working-set`` (1.3, nobody
    discounted) is the better choice.

    CPU: with b the tools running or queued per slot, averaged over 20 s: nobody while
    b > 1.5, one session every ``pace_s`` while b > 0.75, since a session's tools come only
    after its first turns. A pool that fell silent counts as swamped.

    First come, first served, others pass while they fit, until the first has waited
    ``overdue_s``; after ``force_s`` it is admitted whatever the pressure. Ours, built on
    2604.26963; constants chosen by simulation.

    Ignores: shared prefixes, measured waste (moving the target by it measured worse).
    """

    def __init__(
        self,
        target: float = 1.5,
        *,
        idle_weight: float = 0.3,
        pace_s: float = 30.0,
        overdue_s: float = 300.0,
        force_s: float = 1800.0,
    ) -> None:
        if target <= 0:
            raise ValueError(f"mars:{target}: the share of the pool must be positive")
        self.target = float(target)
        self.idle_weight = idle_weight
        self.pace_s = pace_s
        self.overdue_s = overdue_s
        self.force_s = force_s
        self.projection = Projection()
        self.backlog = Smoothed(tau_s=20.0)
        self._has_pool = self._is_pool_silent = False
        self._admitted_at = -math.inf

    def window(self, load: Load, now: float) -> float:
        return math.inf if self.projection.saw(load) else float(NUM_BLIND)

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        self.projection.saw(load)
        self.projection.watched(active)
        backlog = None
        if load.tool_slots and load.tools_running is not None and load.tools_queued is not None:
            backlog = (load.tools_running + load.tools_queued) / load.tool_slots
            self._has_pool = True
        self._is_pool_silent = self._has_pool and backlog is None
        self.backlog.update(backlog, now)

    def on_end(self, session: Session, now: float) -> None:
        self.projection.ended(session)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        queue = in_arrival_order(held)
        if not self.projection.saw(load):
            chosen = queue[: max(0, NUM_BLIND - len(active))]
        else:
            ahead = self.projection.growth.ahead_tokens()
            used = self.projection.working_set_tokens(active, now, idle_weight=self.idle_weight)
            chosen = fitting(
                queue,
                budget=self.target * self.projection.pool_tokens - used,
                slots=self._cpu_slots(now) if len(active) else math.inf,
                size=lambda h: h.num_prompt_tokens + ahead,
                may_pass=lambda h: now - h.held_since <= self.overdue_s,
            )
        if queue and queue[0] not in chosen:
            is_overdue = now - queue[0].held_since > self.force_s
            chosen = [*queue[:1], *chosen] if is_overdue or not len(active) else chosen
        for h in chosen:
            self.projection.admitted(h)
            self._admitted_at = now
        return [h.session.session_id for h in chosen]

    def state(self) -> dict[str, Any]:
        is_cpu_pressed = self._is_pool_silent or (self.backlog.value or 0.0) > CPU_SWAMPED
        return {
            "mode": "cpu" if is_cpu_pressed else "working_set",
            "target": self.target,
            "pool_tokens": self.projection.pool_tokens,
            "cpu_backlog": self.backlog.value,
            "is_cpu_pressed": is_cpu_pressed,
        }

    def _cpu_slots(self, now: float) -> float:
        backlog = math.inf if self._is_pool_silent else (self.backlog.value or 0.0)
        if backlog > CPU_SWAMPED:
            return 0
        if backlog > CPU_BUSY:
            return 1 if now - self._admitted_at > self.pace_s else 0
        return math.inf
