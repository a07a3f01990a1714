# SPDX-License-Identifier: Apache-2.0
"""MARS as published: multi-level feedback over sessions, bounded retention (2604.26963)."""

from __future__ import annotations

from mars.core.levels import Levels
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import ROUNDING_S, PrefillCost, idle_s, kept_blocks, pool_share

_DECODE = -1.0


@scheduling_policies.register("mars-paper")
class MarsPaper(BasePolicy):
    """Multi-level feedback queue over sessions, one order for service and preemption.

    ``level = max(0, max(feedback, bucket(uncached prefill)) - floor(waited / 30 s))``;
    ``rank = (decode ? -1 : level, last service or arrival, arrival)``. A session that uses
    up its quantum and has prefill left is demoted; decoding or being preempted brings it
    back to level 0, preempted turns wait in front. Retention: keep while
    ``prefill_s(context) > idle seconds x share of the pool`` and somebody waits.

    Source: paper sections on the agent-centric scheduler; constants of the authors' preview
    (2048/8192/32768 tokens, quanta 2048/1024/512/256). Deviations: feedback lives in the
    session, where the preview keeps it per request; the level of a waiting turn follows its
    uncached tokens, where the preview takes the raw prompt length; new turns age from their
    arrival instead of being lifted at once; retention is priced as above, the preview
    retains nothing and the text gives no formula. Tool-blocked sessions have all decoded,
    so all are at level 0 and their free blocks leave by recency, which is plain LRU.

    Ignores: attained service, the rest of the session, memory taken by half-done prefills.
    """

    shrinks_chunks = True
    has_levels = True

    def __init__(
        self,
        *,
        cost: PrefillCost | None = None,
        ageing_s: float = 30.0,
        retains: bool = True,
    ) -> None:
        super().__init__(cost=cost)
        self.levels = Levels(ageing_s=ageing_s)
        self._first_tokens = self.levels.bounds_tokens[0]
        self.retains = retains

    def level(self, turn: Turn, now: float) -> int:
        """Effective level of a turn (0 first); preempted turns wait at the first."""
        if turn.num_preemptions and not turn.is_running:
            return 0
        return self._effective(turn, now)

    def _effective(self, turn: Turn, now: float) -> int:
        # Asked several times a step of every turn: without a call for each of its parts.
        known = turn.num_computed_tokens if turn.is_running else turn.num_cached_tokens
        remaining = turn.num_prompt_tokens + turn.num_output_tokens - known
        feedback = turn.session.policy_state
        if remaining <= self._first_tokens and not feedback:
            return 0
        since = turn.last_service_time
        waited_s = now - (turn.arrival_time if since is None else since)
        return self.levels.effective(_feedback(turn.session), remaining, waited_s)

    def rank(self, turn: Turn, now: float) -> Rank:
        if turn.is_running:
            if not turn.is_prefill:
                return (_DECODE, 0.0, turn.arrival_time)
        elif turn.num_preemptions:
            return (0.0, 0.0, turn.arrival_time)
        since = turn.last_service_time
        last = turn.arrival_time if since is None else since
        return (float(self._effective(turn, now)), 1.0 + max(0.0, last), turn.arrival_time)

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        if not turn.is_prefill:
            return None
        return self.levels.quantum(self._effective(turn, now))

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        session = turn.session
        remaining = turn.num_uncached_tokens - num_tokens
        if not turn.is_prefill or remaining <= 0:
            session.policy_state = 0
        elif num_tokens >= self.levels.quantum(self.level(turn, now)):
            session.policy_state = self.levels.demoted(_feedback(session))

    def on_preempt(self, turn: Turn, now: float) -> None:
        turn.session.policy_state = 0

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        saving_s = self.cost.prefill_s(session.cached_tokens)
        is_wanted = load.num_waiting is None or load.num_waiting > 0
        cost_s = idle_s(session, now) * pool_share(session, load) if is_wanted else 0.0
        return (saving_s - cost_s) / kept_blocks(session, load)

    def surely_holds(self, session: Session, load: Load) -> tuple[float, float]:
        since = session.last_turn_finished_at
        if not self.retains or since is None:
            return super().surely_holds(session, load)
        saving_s = self.cost.prefill_s(session.cached_tokens)
        return (since + saving_s / pool_share(session, load) - ROUNDING_S, 0.0)

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        return self.retains and self.retention_value(session, load, now) > 0.0


def _feedback(session: Session) -> int:
    """Feedback level of the session; 0 before any service."""
    return session.policy_state if isinstance(session.policy_state, int) else 0
