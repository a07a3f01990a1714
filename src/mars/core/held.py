# SPDX-License-Identifier: Apache-2.0
"""KV that is held, by reference, for tool-blocked sessions: whether, how long, who goes first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mars.core import events
from mars.core.model import Load, Session, SessionState, Turn
from mars.core.policy import SchedulingPolicy

Emit = Callable[[events.Event], None]


@dataclass(slots=True, frozen=True)
class RetentionLimits:
    """Hard bounds on held KV, whatever a policy wishes (chosen; DESIGN section 5).

    ``max_share`` of the KV pool (0..1) may be held for tool-blocked sessions, each for at
    most ``max_hold_s`` seconds. ``session_idle_s`` after its last turn a session is
    forgotten, which bounds memory when nobody says that it ended.
    """

    max_share: float = 0.5
    max_hold_s: float = 120.0
    session_idle_s: float = 3600.0


@dataclass(slots=True)
class Hold:
    """References held on the KV of one tool-blocked session.

    The policy surely holds on before ``sure_until + sure_s_per_block x used blocks``.
    """

    session: Session
    num_blocks: int
    held_since: float
    sure_until: float = -math.inf
    sure_s_per_block: float = 0.0


class HeldKv(dict[str, Hold]):
    """Session id -> what is held of it. The engine's adapter owns the blocks themselves.

    Args:
        policy: says what a prefix is worth.
        limits: hard bounds.
        num_blocks: usable KV blocks of the engine.
        block_size: tokens per KV block.
        emit: receives every event.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        limits: RetentionLimits,
        num_blocks: int,
        block_size: int,
        emit: Emit,
    ) -> None:
        super().__init__()
        self._policy = policy
        self._limits = limits
        self._max_blocks = limits.max_share * num_blocks
        self._block_size = block_size
        self._emit = emit
        self.num_blocks = 0
        """Blocks held in all."""
        self._ranked: list[str] = []
        self._ranked_for: tuple[Load, float] | None = None

    def may_hold(self, session: Session, num_blocks: int, load: Load, now: float) -> bool:
        """Whether the KV of a session whose turn just ended is to be held."""
        return (
            num_blocks > 0
            and session.state is not SessionState.ENDED
            and session.num_open_turns == 0
            and not self._policy.keeps_engine_order
            and self._policy.holds_kv(session, load, now)
            and self.num_blocks + num_blocks <= self._max_blocks
        )

    def hold(self, session: Session, num_blocks: int, load: Load, now: float) -> None:
        """Note that the adapter holds these references from now on."""
        before = self.get(session.session_id)
        self.num_blocks += num_blocks - (before.num_blocks if before is not None else 0)
        sure = self._policy.surely_holds(session, load)
        self[session.session_id] = Hold(session, num_blocks, now, *sure)
        self._ranked_for = None
        self._emit(
            events.KvRetained(
                time=now,
                session_id=session.session_id,
                num_blocks=num_blocks,
                value=self._policy.retention_value(session, load, now),
            )
        )

    def expired(self, load: Load, now: float) -> list[tuple[str, str]]:
        """Sessions whose KV is to be released now, each with the reason."""
        out: list[tuple[str, str]] = []
        used = (load.kv_blocks_total or 0) - (load.kv_blocks_free or 0)
        # Most are not asked about: a policy's price takes time, and there may be hundreds.
        for session_id, hold in self.items():
            if now - hold.held_since > self._limits.max_hold_s:
                out.append((session_id, "bound"))
            elif now < hold.sure_until + hold.sure_s_per_block * used:
                continue
            elif not self._policy.holds_kv(hold.session, load, now):
                out.append((session_id, "expired"))
        return out

    def changed(self, session_id: str) -> None:
        """What is known of a session changed: its worth is to be asked for anew."""
        self._ranked_for = None
        hold = self.get(session_id)
        if hold is not None:
            hold.sure_until, hold.sure_s_per_block = -math.inf, 0.0

    def reclaimable(self, turn: Turn, free_blocks: int, load: Load, now: float) -> list[str]:
        """Sessions to release, least worth first, until this turn's allocation succeeds.

        A running turn may take any, before anyone is preempted; so may a waiting one while
        nobody runs, or the engine would stand still. Else a waiting turn takes only what
        the policy yields to it, and nothing when that would not be enough.
        """
        own = turn.session.session_id
        may_take_any = turn.is_running or not load.num_running
        needed = -(-(turn.num_tokens + 1) // self._block_size)
        if not may_take_any and needed > free_blocks + self.num_blocks:
            return []
        order = [s for s in self._by_worth(load, now) if s != own and s in self]
        if may_take_any:
            # Its own last: a prompt that begins otherwise has no use for what it held.
            return [*order, own] if own in self else order
        yields = self._policy.yields_to
        order = [s for s in order if yields(self[s].session, turn, load, now)]
        within_reach = free_blocks + sum(self[s].num_blocks for s in order)
        if own in self:
            within_reach += self[own].num_blocks
        return order if needed <= within_reach else []

    def _by_worth(self, load: Load, now: float) -> list[str]:
        """Sessions, least worth first; priced once a step, those released since included."""
        known = self._ranked_for
        if known is None or known[0] is not load or known[1] != now:
            value = self._policy.retention_value
            self._ranked = sorted(self, key=lambda s: (value(self[s].session, load, now), s))
            self._ranked_for = (load, now)
        return self._ranked

    def released(self, session_id: str, reason: str, now: float) -> None:
        """Note that the adapter let go of the references of this session."""
        hold = self.pop(session_id)
        self.num_blocks -= hold.num_blocks
        self._emit(
            events.KvReleased(
                time=now,
                session_id=session_id,
                num_blocks=hold.num_blocks,
                held_s=now - hold.held_since,
                reason=reason,
            )
        )
