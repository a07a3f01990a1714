# SPDX-License-Identifier: Apache-2.0
"""A static cap on active sessions, first come first served: ``cap:N``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mars.core.model import ActiveSet, HeldSession, Load
from mars.core.packing import in_arrival_order
from mars.core.policy import BaseAdmission, admission_policies


@admission_policies.register("cap")
class Cap(BaseAdmission):
    """``active <= N``, first come first served.

    The baseline that any adaptive rule must beat: swept over N it is the best constant
    (public sweep in aarora79/agentic-coding-harness-benchmarks#178: 2.5x in throughput).
    Nobody is overtaken, so waiting is bounded by the sessions in front.
    Ignores: both loads, sizes.
    """

    overtaking_s = 0.0

    def __init__(self, num_sessions: int = 8) -> None:
        if num_sessions < 1:
            raise ValueError(f"cap:{num_sessions}: give a number of sessions of at least 1")
        self.num_sessions = int(num_sessions)

    def window(self, load: Load, now: float) -> float:
        return float(self.num_sessions)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        room = max(0, self.num_sessions - len(active))
        return [h.session.session_id for h in in_arrival_order(held)[:room]]

    def state(self) -> dict[str, Any]:
        return {"mode": "fcfs", "cap": self.num_sessions}
