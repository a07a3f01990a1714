# SPDX-License-Identifier: Apache-2.0
"""Whose KV the memory is for: the first sessions that fit together, and nobody else's.

Without such a plan every returning session takes the blocks of others that are about to
return, all are computed again and again, and memory decides nothing. With it a session
that does not fit waits between its turns, with nothing lost but what it had cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mars.core.claims import Claim, Claims, Share
from mars.core.lengths import SessionLengths
from mars.core.model import Load, Session, Turn
from mars.core.retention import PriceTable
from mars.core.standing import Standing
from mars.core.worth import Revalued

COLD_TOKENS = 4096
"""A turn with more to compute than this and than half of its prompt is a cold start."""
MIN_LOST_TOKENS = 64
REPLAN_S = 0.25
"""A plan is renewed when turns come, start or go, and at least so often."""
RUNNING_MEMORY_S = 10.0
"""Time constant of the average number of running turns."""


@dataclass(slots=True, frozen=True)
class ResidencyRules:
    """Constants, chosen by simulation over synthetic and public traces.

    Attributes:
        patience: an idle session is kept for ``grace_s`` plus so many times its recompute
            seconds, times 1 + the running turns: the more run, the less its memory would
            speed up the engine, and the longer it pays to wait.
        grace_s: kept at least so long.
        least_reserve, most_reserve: share of the pool that a cold start leaves free for
            growth; starts in the middle and follows measured waste.
        idle_weight: how much of the KV of idle sessions no longer kept a cold start counts.
        overdue_s: after waiting so long a turn is not overtaken for memory any more.
        most_lead_s: sessions of a short kind go before those of a longer one that
            came up to so many seconds x the difference of their handicaps earlier.
    """

    patience: float = 8.0
    grace_s: float = 2.0
    least_reserve: float = 0.2
    most_reserve: float = 0.5
    idle_weight: float = 0.5
    overdue_s: float = 200.0
    most_lead_s: float = 3600.0


@dataclass(slots=True)
class Reserve:
    """Share of the pool (0..1) kept free for growth: up with waste, down without.

    Waste is the share of time that goes into computing again what sessions lost, averaged
    over two minutes. Every five seconds: + 0.02 above 1%, - 0.01 below 0.3%; in between it
    stays, which is the hysteresis. Chosen by simulation.
    """

    least: float
    most: float
    share: float = 0.0
    _lost_s: float = 0.0
    _lost_at: float = 0.0
    _moved_at: float = -math.inf

    MEMORY_S: ClassVar[float] = 120.0
    INTERVAL_S: ClassVar[float] = 5.0

    def __post_init__(self) -> None:
        self.share = 0.5 * (self.least + self.most)

    def recomputed(self, seconds: float, now: float) -> None:
        """A returning turn computes again what was cached before, for so long."""
        self._lost_s = self.waste(now) * self.MEMORY_S + seconds
        self._lost_at = now

    def waste(self, now: float) -> float:
        """Share of time lost to recomputation lately."""
        age_s = max(0.0, now - self._lost_at)
        return self._lost_s * math.exp(-age_s / self.MEMORY_S) / self.MEMORY_S

    def update(self, now: float) -> None:
        """Move, if an interval has passed."""
        if now - self._moved_at < self.INTERVAL_S:
            return
        self._moved_at = now
        waste = self.waste(now)
        if waste > 0.01:
            self.share = min(self.most, self.share + 0.02)
        elif waste < 0.003:
            self.share = max(self.least, self.share - 0.01)


class Residency:
    """The plan: which waiting turns must not start yet, which idle sessions are kept.

    In the order of :meth:`place`, each waiting turn and each idle session gets the blocks it needs
    as long as there are any beside those of the running turns. A cold start needs its
    blocks plus the reserve, which shrinks with its own size, unless nobody else is there;
    what running turns of later places hold is part of the reserve, since they are to yield it
    when their turn is over.
    Waiting is bounded: only sessions of an earlier place, which end, and turns that overtook
    within ``overdue_s`` stand before one.
    """

    def __init__(self, cost: PriceTable, rules: ResidencyRules | None = None) -> None:
        self.rules = rules or ResidencyRules()
        self.blocked: set[str] = set()
        """Request ids that must wait."""
        self.kept: set[str] = set()
        """Idle sessions whose KV is kept."""
        self.reserve = Reserve(self.rules.least_reserve, self.rules.most_reserve)
        self.revalued = Revalued()
        """Sessions whose part in the plan changed."""
        self.lengths = SessionLengths()
        self._cost = cost
        self._claims = Claims(self.place)
        self._place_version = self.lengths.version
        self._is_stale = True
        self._next_plan_at = -math.inf
        self._running = _Running((), 1, self.place)
        self._num_running = 0.0
        self._averaged_at: float | None = None

    def started(self, turn: Turn, now: float) -> None:
        """A waiting turn got its first chunk; ``num_cached_tokens`` is its hit."""
        self._is_stale = True
        if turn.turn_index == 0:
            if isinstance(turn.session.policy_state, Share):
                turn.session.policy_state.shared_tokens = turn.num_cached_tokens
            return
        lost = min(turn.session.context_tokens, turn.num_tokens) - turn.num_cached_tokens
        # A part of a block is always computed again; that is nobody's loss.
        if lost >= MIN_LOST_TOKENS:
            self.reserve.recomputed(self._cost.prefill_s(lost, turn.num_cached_tokens), now)

    def changed(self) -> None:
        """Plan anew at the next step."""
        self._is_stale = True

    def returned(self, session: Session) -> None:
        """A turn of the session came."""
        self._claims.remove_idle(session.session_id)
        self.kept.discard(session.session_id)
        self.revalued.add(session.session_id)
        self._is_stale = True

    def left(self, session: Session) -> None:
        """A turn of the session finished."""
        if session.num_open_turns == 0:
            self._claims.add_idle(session)
        self.revalued.add(session.session_id)
        self._is_stale = True

    def ended(self, session: Session) -> None:
        """The session is over: learn how long it lasted."""
        self.returned(session)
        state, until = session.policy_state, session.last_turn_finished_at
        if isinstance(state, Share) and until is not None:
            self.lengths.ended(state.first_tokens, until - session.arrival_time)
            self.revalued.add_all()

    def place(self, session: Session) -> float:
        """Who has memory first (smallest): ``arrival + most_lead_s x handicap`` of its kind.

        Sessions of one kind stay in the order of their arrival. Finishing the short kinds
        first lowers the mean; as arrivals go on, everybody's turn comes.
        """
        share, version = session.policy_state, self.lengths.version
        if not isinstance(share, Share):
            share = Share()
        if share.place_version != version:
            lead_s = self.rules.most_lead_s * self.lengths.handicap(share.first_tokens)
            share.place, share.place_version = session.arrival_time + lead_s, version
        return share.place

    def plan(self, turns: Iterable[Turn], load: Load, now: float) -> None:
        """Renew the plan if something changed; without a known pool nobody is blocked."""
        self._average(load.num_running or 0, now)
        self.reserve.update(now)
        if not self._is_stale and now < self._next_plan_at:
            return
        self._is_stale = False
        self._next_plan_at = now + REPLAN_S
        before, self.blocked, self.kept = self.kept, set(), set()
        if load.kv_blocks_total:
            self._plan(turns, load.kv_blocks_total, load.block_size, now)
        self.revalued.update(before ^ self.kept)

    def _plan(self, turns: Iterable[Turn], total: int, block_size: int, now: float) -> None:
        # Some thousand claims a step, so what one needs is reckoned anew only when it changed.
        claims, rules = self._claims, self.rules
        if self._place_version != self.lengths.version:
            self._place_version = self.lengths.version
            claims.move()
        running = claims.renew(turns)
        self._running = _Running(running, block_size, self.place)
        budget, num_resident = total - self._running.num_blocks, len(running)
        patience, grace_s = rules.patience * (1.0 + self._num_running), rules.grace_s
        kept, blocked, idle = self.kept, self.blocked, 0.0
        order = iter(claims)
        for claim in order:
            turn = claim.turn
            if turn is None:
                # Without a call each: there may be a thousand of them.
                tokens = claim.session.cached_tokens
                if tokens <= 0:
                    continue
                if tokens != claim.tokens:
                    self._renew(claim, tokens, block_size)
                need = claim.blocks
                if need > budget or now - claim.since > grace_s + patience * claim.recompute_s:
                    idle += need
                    continue
                kept.add(claim.key[1])
            else:
                tokens = turn.num_prompt_tokens + turn.num_output_tokens + 1
                if tokens != claim.tokens or claim.share.shared_tokens != claim.shared_tokens:
                    self._renew(claim, tokens, block_size)
                need = claim.blocks
                if need > budget or need + self._spare(claim, total, num_resident, idle) > budget:
                    blocked.add(turn.request_id)
                    if now - turn.arrival_time > rules.overdue_s:
                        break
                    continue
            budget -= need
            num_resident += 1
        # What is free is kept for the one that is overdue.
        blocked.update(claim.turn.request_id for claim in order if claim.turn is not None)

    def _renew(self, claim: Claim, tokens: int, block_size: int) -> None:
        claim.tokens, claim.shared_tokens = tokens, claim.share.shared_tokens
        claim.blocks = _blocks(tokens - claim.shared_tokens, block_size)
        if claim.turn is None:
            host_tokens = claim.session.host_tokens
            claim.recompute_s = self._cost.return_s(tokens, 0, host_tokens)

    def _spare(self, claim: Claim, total: int, num_resident: int, idle: float) -> float:
        """Blocks to be left free beside those that a waiting turn needs."""
        if not num_resident or claim.turn is None or not is_cold(claim.turn):
            return 0.0
        spare = self.reserve.share * total + self.rules.idle_weight * idle
        spare *= 1 - claim.blocks / total
        return max(0.0, spare - self._running.behind(claim.key[0])) if spare > 0.0 else 0.0

    def _average(self, num_running: int, now: float) -> None:
        since = self._averaged_at
        self._averaged_at = now
        if since is None:
            self._num_running = float(num_running)
            return
        weight = 1.0 - math.exp(-max(0.0, now - since) / RUNNING_MEMORY_S)
        self._num_running += weight * (num_running - self._num_running)


def known_cached_tokens(turn: Turn) -> int:
    """Prefix of a waiting turn believed cached; what was evicted since it came is not."""
    if turn.turn_index == 0 or turn.is_running:
        return turn.num_cached_tokens
    return min(turn.num_cached_tokens, turn.session.cached_tokens)


def is_cold(turn: Turn) -> bool:
    """Whether most of the turn is to be computed, and that is much.

    A preempted turn is not: what it lost stays cached for the most part.
    """
    num_tokens = turn.num_prompt_tokens + turn.num_output_tokens
    if turn.num_preemptions or num_tokens <= COLD_TOKENS:
        return False
    found = max(known_cached_tokens(turn), turn.num_host_tokens or 0)
    return num_tokens - found > max(COLD_TOKENS, num_tokens // 2)


class _Running:
    """Blocks of the running turns, each grown by one; by place once that is asked for."""

    def __init__(
        self, turns: Sequence[Turn], block_size: int, place: Callable[[Session], float]
    ) -> None:
        self._turns = turns
        self._blocks = _grown_blocks(turns, block_size)
        self._place = place
        self._standing: Standing | None = None
        self.num_blocks = sum(self._blocks)

    def behind(self, place: float) -> float:
        """Blocks of those whose place is later."""
        if self._standing is None:
            places = (self._place(turn.session) for turn in self._turns)
            self._standing = Standing(zip(places, self._blocks, strict=True))
        return self._standing.behind(place)


def _grown_blocks(turns: Iterable[Turn], block_size: int) -> list[float]:
    """Of each turn, its blocks and one more; without a call each."""
    out: list[float] = []
    for turn in turns:
        tokens = turn.num_prompt_tokens + turn.num_output_tokens + block_size
        share = turn.session.policy_state
        if isinstance(share, Share):
            tokens -= share.shared_tokens
        out.append(float(-(-tokens // block_size)) if tokens > 0 else 0.0)
    return out


def _blocks(num_tokens: int, block_size: int) -> float:
    """Blocks for so many tokens."""
    return float(-(-max(0, num_tokens) // block_size))
