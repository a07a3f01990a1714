# SPDX-License-Identifier: Apache-2.0
"""InferCept: keep, swap or discard the KV of an interrupted call, by least memory waste."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import ROUNDING_S, PrefillCost, idle_s, kept_blocks


@scheduling_policies.register("infercept")
class InferCept(BasePolicy):
    """Hold the KV over a tool call while holding wastes less memory than recomputing it.

    ``preserve = elapsed x C``;
    ``discard = T(C) x C / 2 + n x T(C / n) x C_other`` (chunked); hold while
    ``preserve < discard``, asked again each step. C: the session's context, C_other: tokens
    the others hold, n: chunks of ``chunk_tokens``, T: prefill seconds; elapsed estimates
    the length of the interruption. ``rank = (session arrival, turn arrival)``: all queues
    are first come, first served by the original arrival.

    With host memory behind the GPU's, those whose ``min(preserve, discard)`` is the largest are
    swapped, as many tokens as the link copies beside the steps (its budget: swapping that hides
    behind computing wastes nothing).

    Source: InferCept, 2402.01869, min-waste equations. Deviations: without host memory nothing
    is swapped; with it vLLM has copied every block before, so that a swap is a release, and
    what was saved of the budget goes on to the next step while somebody waits for it.

    Ignores: queueing after the return, prefix sharing, CPU load.
    """

    def __init__(self, *, cost: PrefillCost | None = None, chunk_tokens: int = 8192) -> None:
        super().__init__(cost=cost)
        if chunk_tokens < 1:
            raise ValueError(f"infercept: chunk_tokens must be at least 1, not {chunk_tokens}")
        self.chunk_tokens = chunk_tokens
        self._acting: dict[str, Session] = {}
        self._budget_s = 0.0
        self._stepped_at = math.inf

    def rank(self, turn: Turn, now: float) -> Rank:
        return (turn.session.arrival_time, turn.arrival_time)

    def on_step(self, turns: Iterable[Turn], load: Load, now: float) -> None:
        if not self.cost.has_tier or not self._acting:
            self._budget_s, self._stepped_at = 0.0, now
            return
        self._budget_s += max(0.0, now - self._stepped_at)
        self._stepped_at = now
        wastes = [(self._waste(s, load, now), name) for name, s in self._acting.items()]
        for _, name in sorted(wastes, reverse=True):
            copy_s = self.cost.reload_s(self._acting[name].context_tokens)
            if copy_s > self._budget_s:
                break
            self._budget_s -= copy_s
            del self._acting[name]

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """Waste avoided (token-seconds) per block."""
        preserve = idle_s(session, now) * session.context_tokens
        return (self._discard(session, load) - preserve) / kept_blocks(session, load)

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        if session.num_open_turns > 0:
            return True
        is_swapped = self.cost.has_tier and session.session_id not in self._acting
        return not is_swapped and self.retention_value(session, load, now) > 0.0

    def surely_holds(self, session: Session, load: Load) -> tuple[float, float]:
        since, context = session.last_turn_finished_at, session.context_tokens
        if since is None or context <= 0 or self.cost.has_tier:
            return super().surely_holds(session, load)
        whole_s, chunked_s = self._prices(context)
        until = since + whole_s / 2.0 - chunked_s - ROUNDING_S
        return (until, chunked_s * load.block_size / context)

    def on_submit(self, turn: Turn, now: float) -> None:
        self._acting.pop(turn.session.session_id, None)

    def on_finish(self, turn: Turn, now: float) -> None:
        if self.cost.has_tier and not turn.session.num_open_turns:
            self._acting[turn.session.session_id] = turn.session

    def on_end(self, session: Session) -> None:
        self._acting.pop(session.session_id, None)

    def _waste(self, session: Session, load: Load, now: float) -> float:
        return min(idle_s(session, now) * session.context_tokens, self._discard(session, load))

    def _discard(self, session: Session, load: Load) -> float:
        """Waste (token-seconds) of computing the context again."""
        context = session.context_tokens
        others = 0
        if load.kv_blocks_total and load.kv_blocks_free is not None:
            used = load.kv_blocks_total - load.kv_blocks_free
            others = max(0, used * load.block_size - context)
        whole_s, chunked_s = self._prices(context)
        return whole_s * context / 2.0 + chunked_s * others

    def _prices(self, context: int) -> tuple[float, float]:
        """Seconds to compute a context at once, and in chunks."""
        whole_s = self.cost.prefill_s(context)
        chunks = max(1, -(-context // self.chunk_tokens))
        if chunks == 1:
            return whole_s, whole_s
        return whole_s, chunks * self.cost.prefill_s(-(-context // chunks))
