# SPDX-License-Identifier: Apache-2.0
"""A clairvoyant reference: what can be had by somebody who knows every length and tool time.

No contender: it is told what nobody can know (``knows_trace`` in an experiment file). It shows
how much of the way from a policy to the lower bound can be gone at all, by one simple rule;
it is not optimal, so that a policy may even pass it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mars.bench.ideal import ideal_time_s
from mars.core.cost import CostModel
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank
from mars.core.retention import PrefillCost, idle_s
from mars.traces.schema import TraceSession

Future = dict[str, list[tuple[float, float]]]
"""Session id -> per turn: (seconds alone from its beginning to the session's end, seconds
from its last token to the next turn)."""


def future_of(sessions: Sequence[TraceSession], cost: CostModel) -> Future:
    """What will happen, for :class:`Oracle`."""
    found: Future = {}
    for session in sessions:
        total_s = ideal_time_s(session, cost)
        weights = [turn.prompt_tokens * 1e-5 + turn.output_tokens * 1e-2 for turn in session.turns]
        waits = [sum(tool.duration_s for tool in t.tools) + t.gap_s for t in session.turns]
        gpu_s = max(0.0, total_s - sum(waits))
        # Time alone, divided among the turns by what they compute.
        per_weight = gpu_s / sum(weights)
        rows: list[tuple[float, float]] = []
        left_s = 0.0
        for weight, wait_s in zip(reversed(weights), reversed(waits), strict=True):
            left_s += weight * per_weight + wait_s
            rows.append((left_s, wait_s))
        found[session.session_id] = rows[::-1]
    return found


class Oracle(BasePolicy):
    """Least remaining time first; cached KV stays for whoever returns soonest.

    ``rank = seconds alone until the session's end``, the same for service and preemption;
    free cached blocks leave by when they are needed next, the latest first (Belady 1966).
    """

    name = "oracle"
    evicts_by_value = True
    shrinks_chunks = True
    bounds_partial_prefills = True

    def __init__(self, future: Future, *, cost: PrefillCost | None = None) -> None:
        super().__init__(cost=cost)
        self.future = future

    def rank(self, turn: Turn, now: float) -> Rank:
        rows = self.future[turn.session.session_id]
        return (rows[min(turn.turn_index, len(rows) - 1)][0], turn.arrival_time)

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        rows = self.future[session.session_id]
        wait_s = rows[min(session.num_turns, len(rows)) - 1][1]
        return 1.0 / (1.0 + max(0.0, wait_s - idle_s(session, now)))
