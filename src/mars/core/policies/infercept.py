# SPDX-License-Identifier: Apache-2.0
"""InferCept: keep or discard the KV of an interrupted call, by least memory waste."""

from __future__ import annotations

from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost, idle_s, kept_blocks


@scheduling_policies.register("infercept")
class InferCept(BasePolicy):
    """Hold the KV over a tool call while holding wastes less memory than recomputing it.

    ``preserve = elapsed x C``;
    ``discard = T(C) x C / 2 + n x T(C / n) x C_other`` (chunked); hold while
    ``preserve < discard``, asked again each step. C: the session's context, C_other: tokens
    the others hold, n: chunks of ``chunk_tokens``, T: prefill seconds; elapsed estimates
    the length of the interruption. ``rank = (session arrival, turn arrival)``: all queues
    are first come, first served by the original arrival.

    Source: InferCept, 2402.01869, min-waste equations. Deviation: no swap to host memory
    (no connector here), so what is not preserved is discarded.

    Ignores: queueing after the return, prefix sharing, CPU load.
    """

    def __init__(self, *, cost: PrefillCost | None = None, chunk_tokens: int = 8192) -> None:
        super().__init__(cost=cost)
        if chunk_tokens < 1:
            raise ValueError(f"infercept: chunk_tokens must be at least 1, not {chunk_tokens}")
        self.chunk_tokens = chunk_tokens

    def rank(self, turn: Turn, now: float) -> Rank:
        return (turn.session.arrival_time, turn.arrival_time)

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """Waste avoided (token-seconds) per block."""
        context = session.context_tokens
        chunks = max(1, -(-context // self.chunk_tokens))
        others = 0
        if load.kv_blocks_total and load.kv_blocks_free is not None:
            used = load.kv_blocks_total - load.kv_blocks_free
            others = max(0, used * load.block_size - context)
        whole_s = self.cost.prefill_s(context)
        chunked_s = whole_s
        if chunks > 1:
            chunked_s = chunks * self.cost.prefill_s(-(-context // chunks))
        discard = whole_s * context / 2.0 + chunked_s * others
        return (discard - idle_s(session, now) * context) / kept_blocks(session, load)

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        return session.num_open_turns > 0 or self.retention_value(session, load, now) > 0.0
