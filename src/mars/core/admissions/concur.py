# SPDX-License-Identifier: Apache-2.0
"""CONCUR: an AIMD window over agents from KV usage and prefix-cache hit rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.model import ActiveSet, HeldSession, Load
from mars.core.packing import in_arrival_order
from mars.core.policy import BaseAdmission, admission_policies
from mars.core.window import AimdWindow


@admission_policies.register("concur")
class Concur(BaseAdmission):
    """``U low: W += a; U high and H low: W *= b; else hold``, first come, first served.

    U: KV usage, H: hit rate, taken as one minus the recompute ratio (what was lost to
    eviction is what a larger cache would have hit).

    When the window falls below the number of running agents, the last to arrive are paused
    between steps; they go on before anyone new does, in order of arrival.

    Source: CONCUR, 2601.22705. Its constants are not public; chosen: a = 1, b = 0.7, low and
    high usage 0.85 and 0.90, low hit rate 0.8, every 5 s; so is who is paused.

    Ignores: sizes, CPU load, latency.
    """

    overtaking_s = 0.0

    def __init__(self, start: int = 8, *, ceiling: int = 128, interval_s: float = 5.0) -> None:
        self.aimd = AimdWindow(
            start=start, floor=1, ceiling=max(start, ceiling), interval_s=interval_s
        )

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        usage, waste = load.kv_usage, load.recompute_ratio
        is_pressed, may_grow = True, False
        if usage is not None and waste is not None:
            is_pressed = usage >= 0.90 and 1.0 - waste < 0.8
            # A window that nobody fills must not grow without bound.
            may_grow = usage <= 0.85 and len(active) >= self.aimd.size - 1
        self.aimd.update(now, is_pressed=is_pressed, may_grow=may_grow)

    def window(self, load: Load, now: float) -> float:
        return self.aimd.size

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        room = max(0, int(self.aimd.size) - len(active))
        queue = [h for h in in_arrival_order(held) if h.is_waiting]
        queue.sort(key=lambda h: h.session.arrival_time if h.is_paused else math.inf)
        return [h.session.session_id for h in queue[:room]]

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        excess = len(active) - int(self.aimd.size)
        if excess <= 0:
            return []
        last = sorted(active.sessions.values(), key=lambda s: (-s.arrival_time, s.session_id))
        return [s.session_id for s in last[:excess]]

    def state(self) -> dict[str, Any]:
        return {"mode": "fcfs", "window": self.aimd.size, "reason": self.aimd.reason}
