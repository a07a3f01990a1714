# SPDX-License-Identifier: Apache-2.0
"""Continuum as its public code has it: a fixed time to live after a turn."""

from __future__ import annotations

from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost, idle_s

_MAX_TOOLS = 256


@scheduling_policies.register("continuum")
class Continuum(BasePolicy):
    """Hold the KV for ``ttl_s`` seconds if the tool's mean time is at most that.

    Unknown tools count as short. A hold ends when it is past its time and no turn of the
    session waits. Waiting order: preempted turns, then sessions whose KV is held, then by
    session arrival; the victim is the latest session that is not at its last turn; under
    pressure the holds of the latest sessions go first.

    Source: Continuum, 2511.02230; the public code's rule (2 s), not the paper's estimator,
    which is ``continuum-dynamic``. Tool times are the gaps between turns, by the tool's name
    where the control plane told it; at most 256 names are kept.

    Ignores: sizes, cost of recomputing, queueing.
    """

    def __init__(self, *, cost: PrefillCost | None = None, ttl_s: float = 2.0) -> None:
        super().__init__(cost=cost)
        self.ttl_s = ttl_s
        self._tools: dict[str, tuple[int, float]] = {}

    def rank(self, turn: Turn, now: float) -> Rank:
        session = turn.session
        if turn.is_running:
            return (0.0, 0.0 if turn.is_last_turn else 1.0, session.arrival_time)
        if turn.num_preemptions:
            return (1.0, 0.0, session.arrival_time)
        return (2.0, 0.0 if session.policy_state is True else 1.0, session.arrival_time)

    def on_submit(self, turn: Turn, now: float) -> None:
        session = turn.session
        if session.last_turn_finished_at is None:
            return
        gap_s = idle_s(session, now)
        session.policy_state = session.cached_tokens > 0 and gap_s <= self._ttl(session)
        name = _tool(session)
        if name in self._tools or len(self._tools) < _MAX_TOOLS:
            count, mean_s = self._tools.get(name, (0, 0.0))
            self._tools[name] = (count + 1, mean_s + (gap_s - mean_s) / (count + 1))

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """Age of the session: the latest goes first."""
        return max(0.0, now - session.arrival_time) + 1.0

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        return session.num_open_turns > 0 or idle_s(session, now) < self._ttl(session)

    def _ttl(self, session: Session) -> float:
        _, mean_s = self._tools.get(_tool(session), (0, 0.0))
        return self.ttl_s if mean_s <= self.ttl_s else 0.0


def _tool(session: Session) -> str:
    return session.tool.tool_name if session.tool is not None else ""
