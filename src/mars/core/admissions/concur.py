# SPDX-License-Identifier: Apache-2.0
"""CONCUR: an AIMD window over agents from KV usage and prefix-cache hit rate."""

from __future__ import annotations

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

    Source: CONCUR, 2601.22705. Its constants are not public; chosen: a = 1, b = 0.7, low and
    high usage 0.85 and 0.90, low hit rate 0.8, every 5 s. Deviation: it pauses running
    agents between steps when the window falls below their number; here only new sessions
    wait.

    Ignores: sizes, CPU load, latency.
    """

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
        return [h.session.session_id for h in in_arrival_order(held)[:room]]

    def state(self) -> dict[str, Any]:
        return {"mode": "fcfs", "window": self.aimd.size, "reason": self.aimd.reason}
