# SPDX-License-Identifier: Apache-2.0
"""MARS, ours: memory for the first sessions that fit, everybody else between turns."""

from __future__ import annotations

from collections.abc import Iterable

from mars.core.claims import Share
from mars.core.hosttier import TierOrder, is_roomy
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.residency import Residency, ResidencyRules, known_cached_tokens
from mars.core.retention import PrefillCost

_DECODE, _READY, _BLOCKED = 0.0, 1.0, 2.0
_OPEN, _KEPT = 2.0e12, 1.0e12


@scheduling_policies.register("mars")
class Mars(BasePolicy):
    """The KV pool is for the first sessions that fit together, short kinds first (``Residency``).

    Turns of other sessions wait, before they start, until it is theirs: what thrashes
    elsewhere is paused at a turn boundary here. ``rank = (decoding: 0, may start: 1,
    blocked: 2; deadline)`` with ``deadline = max(session arrival, turn arrival - lead) +
    stretch x prefill seconds of the uncached tokens``: continuations and short prefills
    go before cold starts, and as a deadline never moves nobody waits for ever.

    Free cached blocks leave in reverse: idle sessions no longer kept, the longest idle
    first; then kept ones, the last in place first; then those whose turn waits. An idle session
    is kept while its recompute seconds outweigh what its memory would speed up.

    Ours, built on 2604.26963 (DESIGN section 5); the constants by simulation: ``ResidencyRules``.

    Where host memory is several times the pool nothing is lost by going without, and nobody is
    blocked: turns go by ``TierOrder``, what lies free on the GPU leaves by how long it is idle.
    With less of it the plan above holds, at the price of a reload where there is one.

    Ignores: tool times; what a session has done so far, unless host memory keeps it.
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
        tier: TierOrder | None = None,
        rules: ResidencyRules | None = None,
    ) -> None:
        super().__init__(cost=cost)
        self.stretch = stretch
        self.lead_s = lead_s
        self.tier = tier or TierOrder()
        self.residency = Residency(self.cost, rules)
        self.take_revalued = self.residency.revalued.take
        self._is_roomy = False

    def on_step(self, turns: Iterable[Turn], load: Load, now: float) -> None:
        self._is_roomy = is_roomy(load.host_blocks_total or 0, load.kv_blocks_total or 0)
        if not self._is_roomy:
            self.residency.plan(turns, load, now)

    def may_start(self, turn: Turn) -> bool:
        return turn.request_id not in self.residency.blocked

    def rank(self, turn: Turn, now: float) -> Rank:
        session, num_tokens = turn.session, turn.num_prompt_tokens + turn.num_output_tokens
        if turn.is_running:
            # As ``is_prefill`` has it; asked of every turn in every step.
            if turn.num_output_tokens and num_tokens - turn.num_computed_tokens <= 1:
                return (_DECODE, session.arrival_time)
            cached = turn.num_cached_tokens
        elif turn.request_id in self.residency.blocked:
            return (_BLOCKED, session.arrival_time)
        else:
            cached = known_cached_tokens(turn)
        # A deadline moves only when what is cached does, and is asked for in every step.
        work, known = (num_tokens, cached), turn.policy_state
        if known is None or known[0] != work:
            turn.policy_state = known = (work, (_READY, self._deadline(turn, cached)))
        return known[1]

    def _deadline(self, turn: Turn, cached: int) -> float:
        arrival = turn.session.arrival_time
        if self._is_roomy:
            return arrival + self.tier.handicap_s(turn)
        start = max(arrival, turn.arrival_time - self.lead_s)
        price_s = self.cost.return_s(turn.num_tokens, cached, turn.num_host_tokens or 0)
        return start + self.stretch * price_s

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """An order, not seconds: the larger, the later its free blocks are given away."""
        if session.num_open_turns > 0:
            return _OPEN - self.residency.place(session)
        if session.session_id in self.residency.kept:
            return _KEPT - self.residency.place(session)
        return session.last_turn_finished_at or session.arrival_time

    def on_submit(self, turn: Turn, now: float) -> None:
        if turn.session.policy_state is None:
            turn.session.policy_state = Share(first_tokens=turn.num_prompt_tokens)
        self.residency.returned(turn.session)

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        if turn.last_service_time is None:
            self.residency.started(turn, now)

    def on_preempt(self, turn: Turn, now: float) -> None:
        self.residency.changed()

    def on_finish(self, turn: Turn, now: float) -> None:
        self.residency.left(turn.session)

    def on_end(self, session: Session) -> None:
        self.residency.ended(session)
