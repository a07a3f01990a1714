# SPDX-License-Identifier: Apache-2.0
"""MARS, ours: earliest virtual deadline, and eviction by what a prefix is worth."""

from __future__ import annotations

from mars.core.estimate import DurationEstimator
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost, idle_s, kept_blocks, value_per_block_s

_DECODE, _PREFILL = 0.0, 1.0


@scheduling_policies.register("mars")
class Mars(BasePolicy):
    """Continuations and short prefills first, nobody for ever; KV leaves by its price.

    ``rank = (decoding ? 0 : 1, deadline)`` with ``deadline = max(session arrival, turn
    arrival - lead) + stretch x prefill seconds of the uncached tokens``, at most turn
    arrival + ``max_wait_s``. A deadline never moves, so only turns that arrive within
    ``lead + max_wait_s`` after a turn can go before it: waiting is bounded.

    Value of a cached prefix per block: ``P(return within horizon | elapsed) x recompute
    seconds / (blocks x expected hold seconds)``; P by tool, learned from the gaps between
    turns. Nothing is held by reference: kept blocks are free blocks that leave last.

    Ours, built on 2604.26963; directions in DESIGN section 5.

    Ignores: how many turns a session still has, the host tier.
    """

    evicts_by_value = True
    shrinks_chunks = True
    bounds_partial_prefills = True

    def __init__(
        self,
        *,
        cost: PrefillCost | None = None,
        stretch: float = 20.0,
        lead_s: float = 600.0,
        max_wait_s: float = 600.0,
        horizon_s: float = 60.0,
    ) -> None:
        super().__init__(cost=cost)
        self.stretch = stretch
        self.lead_s = lead_s
        self.max_wait_s = max_wait_s
        self.horizon_s = horizon_s
        self.returns = DurationEstimator()

    def rank(self, turn: Turn, now: float) -> Rank:
        session = turn.session
        if turn.is_running and not turn.is_prefill:
            return (_DECODE, session.arrival_time)
        cached = turn.num_cached_tokens
        if not turn.is_running:
            cached = min(cached, session.cached_tokens) if session.cached_tokens else cached
        uncached = max(0, turn.num_tokens - cached)
        start = max(session.arrival_time, turn.arrival_time - self.lead_s)
        deadline = start + self.stretch * self.cost.prefill_s(uncached, cached)
        return (_PREFILL, min(deadline, turn.arrival_time + self.max_wait_s))

    def on_submit(self, turn: Turn, now: float) -> None:
        session = turn.session
        if session.last_turn_finished_at is not None:
            self.returns.observe(_tool(session), idle_s(session, now))

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        recompute_s = self.cost.prefill_s(session.cached_tokens)
        blocks = kept_blocks(session, load)
        if session.num_open_turns > 0:
            return value_per_block_s(recompute_s, 1.0, blocks, 1.0)
        name, elapsed_s = _tool(session), idle_s(session, now)
        probability = self.returns.survival(name, elapsed_s, self.horizon_s)
        hold_s = min(self.horizon_s, 1.0 + self.returns.expected(name, elapsed_s))
        return value_per_block_s(recompute_s, probability, blocks, hold_s)


def _tool(session: Session) -> str:
    return session.tool.tool_name if session.tool is not None else ""
