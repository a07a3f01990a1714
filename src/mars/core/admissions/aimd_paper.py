# SPDX-License-Identifier: Apache-2.0
"""The control plane of MARS as published: AIMD window under KV and CPU pressure, packing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars.core.model import ActiveSet, HeldSession, Load
from mars.core.packing import (
    PackingMode,
    few_long,
    fitting,
    free_tokens,
    in_arrival_order,
    ordered,
    prompt_tokens,
)
from mars.core.policy import BaseAdmission, admission_policies
from mars.core.window import AimdWindow, CpuPressure, Pressure

LONG_TOKENS = 50_000
NUM_LONG = 2
NUM_BLIND = 2
RESERVE = 0.1


@admission_policies.register("aimd-paper")
class AimdPaper(BaseAdmission):
    """A window over sessions: +1 when both resources are healthy, x0.7 when one is pressed.

    ``active = min(window, cpu cap, kv cap)``. KV is pressed at 0.90 usage and relieved at
    0.85; the CPU by ``CpuPressure``. The KV cap falls from the ceiling at 0.85 to the floor
    at 0.90. The budget for first prompts is what is free beyond 10% of the pool; under
    pressure short ones go first, with at most two longer than 50,000 tokens in flight;
    when only the CPU is pressed, long ones. Without KV telemetry at most two are active.

    Source: paper section on the external control plane; constants of the authors' preview
    (start and ceiling 30, floor 4, every 0.2 s). Left out: its tail mode, which knows that
    no more sessions will come. Deviations: whoever waits longer than ``overdue_s`` goes
    first (the preview bounds nothing); no CPU pressure until a tool pool has reported.

    Ignores: growth after the first prompt, cached blocks that only look free, waste.
    """

    def __init__(
        self, start: int = 30, *, ceiling: int = 30, floor: int = 4, overdue_s: float = 600.0
    ) -> None:
        ceiling = max(start, ceiling)
        self.aimd = AimdWindow(start=start, floor=min(floor, start), ceiling=ceiling)
        self.kv = Pressure(high=0.90, low=0.85)
        self.cpu = CpuPressure()
        self.overdue_s = self.overtaking_s = overdue_s
        self.mode = PackingMode.FCFS

    def on_tick(self, active: ActiveSet, load: Load, now: float) -> None:
        is_kv, is_cpu = self.kv.update(load.kv_usage), self.cpu.update(load)
        why = "kv" if is_kv else "cpu" if is_cpu else "healthy"
        self.aimd.update(
            now,
            is_pressed=is_kv or is_cpu,
            may_grow=(free_tokens(load, RESERVE) or 0.0) > 0.0,
            why=why,
        )

    def window(self, load: Load, now: float) -> float:
        usage = load.kv_usage
        if usage is None:
            return min(self.aimd.size, float(NUM_BLIND))
        span = (self.kv.high - usage) / (self.kv.high - self.kv.low)
        spread = self.aimd.ceiling - self.aimd.floor
        kv_cap = math.floor(self.aimd.floor + spread * min(1.0, max(0.0, span)))
        return min(self.aimd.size, self.cpu.cap, float(kv_cap))

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        slots = max(0, int(self.window(load, now)) - len(active))
        if not slots:
            return []
        budget = free_tokens(load, RESERVE)
        if budget is None:
            chosen = in_arrival_order(held)[:slots]
        else:
            self.mode = self._mode(held, slots, budget)

            def is_late(h: HeldSession) -> bool:
                return now - h.held_since > self.overdue_s

            queue = ordered(held, self.mode, prompt_tokens, now, self.overdue_s)
            if self.mode is PackingMode.SHORT_FIRST:
                queue = few_long(queue, active, LONG_TOKENS, NUM_LONG, is_late)
            chosen = fitting(
                queue,
                budget=budget,
                slots=slots,
                size=prompt_tokens,
                may_pass=lambda h: not is_late(h),
            )
        if not chosen and not len(active):
            chosen = in_arrival_order(held)[:1]  # an idle engine takes one of any size
        return [h.session.session_id for h in chosen]

    def state(self) -> dict[str, Any]:
        return {
            "mode": self.mode.value,
            "window": self.aimd.size,
            "reason": self.aimd.reason,
            "is_kv_pressed": self.kv.is_pressed,
            "is_cpu_pressed": self.cpu.is_pressed,
        }

    def _mode(self, held: Sequence[HeldSession], slots: int, budget: float) -> PackingMode:
        fits = len(held) <= slots and sum(map(prompt_tokens, held)) <= budget
        if fits and not self.kv.is_pressed and not self.cpu.is_pressed:
            return PackingMode.FCFS
        is_cpu_alone = self.cpu.is_pressed and not self.kv.is_pressed
        return PackingMode.LONG_FIRST if is_cpu_alone else PackingMode.SHORT_FIRST
