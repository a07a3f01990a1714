# SPDX-License-Identifier: Apache-2.0
"""The engine-side decisions about sessions and turns, apart from any engine.

The vLLM plug-in and the simulator own the mechanism (queues, blocks, steps) and ask one
:class:`CoScheduler` the same questions in the same order; that is what makes them agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mars.core import events
from mars.core.cached import CachedKv
from mars.core.held import Emit, HeldKv, RetentionLimits
from mars.core.hosttier import Loading
from mars.core.levels import LevelWatch
from mars.core.model import Activity, Load, Session, SessionState, ToolCall, Turn
from mars.core.pending import PendingBlocks
from mars.core.policy import BasePolicy, Rank, SchedulingPolicy


class CoScheduler:
    """Sessions, their turns in the engine, and what is decided about them.

    Args:
        policy: the scheduling policy.
        num_blocks: usable KV blocks of the engine.
        block_size: tokens per KV block.
        emit: receives every event.
        limits: hard bounds on retention.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        *,
        num_blocks: int,
        block_size: int,
        emit: Emit,
        limits: RetentionLimits | None = None,
    ) -> None:
        self.policy = policy
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.emit = emit
        self.limits = limits or RetentionLimits()
        self.sessions: dict[str, Session] = {}
        self.turns: dict[str, Turn] = {}
        self.loading = Loading()
        self.held = HeldKv(policy, self.limits, num_blocks, block_size, emit)
        self.cached = CachedKv(policy, self.sessions, self.held, block_size, emit)
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.preemptions = 0
        self.shrunk_chunks = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0
        self._pending = PendingBlocks(block_size)
        hears = getattr(type(policy), "on_service", None)
        self._hears_service = hears is not BasePolicy.on_service
        self._levels = LevelWatch(policy.level, emit) if policy.has_levels else None
        self._last_step_at: float | None = None
        self._next_sweep_at = 0.0

    # --- sessions --------------------------------------------------------------------
    def session(self, session_id: str, now: float) -> Session:
        """The session of that id; made when not known."""
        session = self.sessions.get(session_id)
        if session is None:
            session = self.sessions[session_id] = Session(session_id, arrival_time=now)
        return session

    def tool_started(self, call: ToolCall, expected_return_at: float | None = None) -> None:
        """The control plane saw a tool of this session queue or start."""
        session = self.sessions.get(call.session_id)
        if session is not None and session.num_open_turns == 0:
            session.tool = call
            session.expected_return_at = expected_return_at

    def tool_finished(self, session_id: str, now: float) -> None:
        """The control plane saw the session's tool end: its next turn is due."""
        session = self.sessions.get(session_id)
        if session is not None and session.tool is not None:
            session.tool.finished_at = now
            session.expected_return_at = now

    def reset_context(self, session_id: str, num_kept_tokens: int) -> bool:
        """The client compacted: of what is cached, only so much is asked for again.

        True if held KV must be released.
        """
        session = self.sessions.get(session_id)
        if session is not None:
            session.epoch += 1
            session.cached_tokens = min(session.cached_tokens, num_kept_tokens)
        return self.give_kv(session_id, gives=True)

    def give_kv(self, session_id: str, *, gives: bool) -> bool:
        """The session's cached KV is to go first, or no longer; True: release what is held."""
        session = self.sessions.get(session_id)
        if session is not None:
            session.gives_kv = gives
            self.cached.changed(session_id)
        return gives and session_id in self.held

    def end_session(self, session_id: str) -> bool:
        """Forget a session once its turns are gone; True if held KV must be released."""
        session = self.sessions.get(session_id)
        if session is None:
            return False
        session.state = SessionState.ENDED
        if session.num_open_turns == 0:
            self._forget(session)
        return session_id in self.held

    # --- turns -----------------------------------------------------------------------
    def submit(
        self,
        request_id: str,
        session_id: str | None,
        num_prompt_tokens: int,
        now: float,
        max_output_tokens: int = 0,
        priority: int = 0,
        num_host_tokens: int | None = None,
    ) -> Turn:
        """A turn enters the engine. Without a session id it is a session of one turn."""
        session = self.session(session_id or request_id, now)
        if session_id is None:
            session.state = SessionState.ENDED
        session.activity = Activity.REASONING
        turn = Turn(
            request_id=request_id,
            session=session,
            turn_index=session.num_turns,
            arrival_time=now,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=min(session.cached_tokens, max(0, num_prompt_tokens - 1)),
            num_host_tokens=num_host_tokens,
            priority=priority,
        )
        session.num_turns += 1
        session.num_open_turns += 1
        self.turns[request_id] = turn
        self.policy.on_submit(turn, now)
        # Only now: the policy learns from the tool call that this turn returns from.
        session.tool = None
        session.expected_return_at = None
        self.emit(
            events.TurnSubmitted(
                time=now,
                session_id=session.session_id,
                request_id=request_id,
                turn_index=turn.turn_index,
                num_prompt_tokens=num_prompt_tokens,
                projected_kv_blocks=self.blocks_of(num_prompt_tokens + max_output_tokens),
            )
        )
        if self._levels is not None:
            self._levels.look(turn, "arrival", now)
        return turn

    def started(self, turn: Turn, num_cached_tokens: int, reusable_tokens: int, now: float) -> None:
        """A waiting turn got its first chunk (again, after a preemption).

        ``num_cached_tokens``: its prefix-cache hit. ``reusable_tokens``: how much of its
        prompt had been computed before for this session; after a preemption, what was
        computed then. What of that was not hit counts as recomputed (whole blocks only).
        """
        if turn.num_preemptions:
            reusable_tokens = turn.num_lost_tokens
        else:
            # The last token of a turn was sampled, its KV never computed.
            reusable_tokens = min(reusable_tokens, max(0, turn.session.context_tokens - 1))
        levels = self._levels
        if levels is not None:
            levels.look(turn, "ageing", now)
        self.loading.end(turn)
        turn.is_running = True
        turn.num_cached_tokens = turn.num_computed_tokens = num_cached_tokens
        if levels is not None:
            levels.look(turn, "resumed" if turn.num_preemptions else "cache", now)
        whole = reusable_tokens // self.block_size * self.block_size
        lost = max(0, whole - num_cached_tokens)
        turn.num_recomputed_tokens += lost
        self.recomputed_tokens += lost
        if turn.first_scheduled_at is not None:
            self.emit(
                events.TurnResumed(
                    time=now,
                    session_id=turn.session.session_id,
                    request_id=turn.request_id,
                    num_cached_tokens=num_cached_tokens,
                    num_recomputed_tokens=lost,
                )
            )
            return
        turn.first_scheduled_at = now
        self.prefix_queries_tokens += turn.num_prompt_tokens
        self.prefix_hits_tokens += num_cached_tokens
        self.emit(
            events.TurnStarted(
                time=now,
                session_id=turn.session.session_id,
                request_id=turn.request_id,
                turn_index=turn.turn_index,
                num_cached_tokens=num_cached_tokens,
                queue_s=now - turn.arrival_time,
            )
        )

    def served(self, served: Iterable[tuple[Turn, int]], now: float) -> None:
        """The step planned at ``now`` computes these many tokens of these turns."""
        step_s = 0.0 if self._last_step_at is None else now - self._last_step_at
        self._last_step_at = now
        self._pending.changed()
        levels, total = self._levels, 0
        on_service = self.policy.on_service if self._hears_service else None
        for turn, num_tokens in served:
            session, before = turn.session, turn.last_service_time
            # One token at the first level is by far the most frequent, and stays there.
            may_move = levels is not None and (num_tokens > 1 or turn.level > 0)
            if levels is not None and may_move:
                levels.look(turn, "ageing", now)
            # A turn not served in the step before has not used the time since.
            if before is not None and now - before <= step_s:
                session.attained_service_s += now - before
            if on_service is not None:
                on_service(turn, num_tokens, now)
            turn.num_computed_tokens += num_tokens
            session.num_computed_tokens += num_tokens
            total += num_tokens
            turn.last_service_time = session.last_service_time = now
            if levels is not None and may_move:
                levels.look_served(turn, now)
        self.computed_tokens += total

    def progressed(self) -> None:
        """What the adapter says of the running turns' tokens is new: a step begins."""
        self._pending.changed()

    def first_token(self, turn: Turn, now: float) -> None:
        """The turn's first output token was sampled."""
        turn.first_token_at = now
        self.emit(
            events.FirstToken(
                time=now,
                session_id=turn.session.session_id,
                request_id=turn.request_id,
                turn_index=turn.turn_index,
                ttft_s=now - turn.arrival_time,
            )
        )

    def preempted(self, turn: Turn, now: float) -> None:
        """A running turn lost its KV and waits again."""
        lost = turn.num_computed_tokens
        self._pending.changed()
        turn.is_running = False
        turn.num_preemptions += 1
        turn.num_lost_tokens = lost
        turn.num_cached_tokens = turn.num_computed_tokens = 0
        self.preemptions += 1
        self.policy.on_preempt(turn, now)
        self.held.changed(turn.session.session_id)
        if self._levels is not None:
            self._levels.look(turn, "preempted", now)
        self.emit(
            events.TurnPreempted(
                time=now,
                session_id=turn.session.session_id,
                request_id=turn.request_id,
                lost_tokens=lost,
                rank=self.policy.rank(turn, now),
            )
        )

    def shrunk(self, turn: Turn, wanted: int, granted: int, now: float) -> None:
        """A prefill chunk was cut to what memory had."""
        self.shrunk_chunks += 1
        self.emit(
            events.ChunkShrunk(
                time=now,
                session_id=turn.session.session_id,
                request_id=turn.request_id,
                wanted_tokens=wanted,
                granted_tokens=granted,
            )
        )

    def finished(
        self, turn: Turn, load: Load, now: float, *, reason: str, num_cached_blocks: int
    ) -> bool:
        """A turn left the engine; True when the references on its KV are to be held.

        ``num_cached_blocks``: full blocks of it that can serve a next turn.
        """
        session = turn.session
        self.loading.end(turn)
        self._pending.changed()
        del self.turns[turn.request_id]
        session.num_open_turns -= 1
        if turn.first_scheduled_at is not None:
            session.context_tokens = turn.num_tokens
            session.cached_tokens = num_cached_blocks * self.block_size
            session.host_tokens = turn.num_prompt_tokens // self.block_size * self.block_size
        session.gives_kv = False
        session.last_turn_finished_at = now
        session.activity = Activity.ACTING
        self.policy.on_finish(turn, now)
        self.held.changed(session.session_id)
        hold = reason not in ("abort", "error") and self.held.may_hold(
            session, num_cached_blocks, load, now
        )
        self.emit(
            events.TurnFinished(
                time=now,
                session_id=session.session_id,
                request_id=turn.request_id,
                turn_index=turn.turn_index,
                num_prompt_tokens=turn.num_prompt_tokens,
                num_output_tokens=turn.num_output_tokens,
                num_cached_tokens=turn.num_cached_tokens,
                num_recomputed_tokens=turn.num_recomputed_tokens,
                num_preemptions=turn.num_preemptions,
                freed_blocks=0 if hold else num_cached_blocks,
                retained_blocks=num_cached_blocks if hold else 0,
                finish_reason=reason,
            )
        )
        if hold:
            self.held.hold(session, num_cached_blocks, load, now)
        if session.state is SessionState.ENDED and session.num_open_turns == 0:
            self._forget(session)
        return hold

    # --- order and limits ------------------------------------------------------------
    def rank_key(self, turn: Turn, now: float) -> tuple[Rank, float, str]:
        """Service order of a turn, the last preempted first; ties go by arrival."""
        return (self.policy.rank(turn, now), turn.arrival_time, turn.request_id)

    def order(self, turns: Iterable[Turn], now: float) -> list[Turn]:
        """Turns in service order."""
        return sorted(turns, key=lambda turn: self.rank_key(turn, now))

    def may_start(self, turn: Turn, running: Sequence[Turn], free_blocks: int) -> bool:
        """Whether memory has room for this prefill beside the unfinished ones.

        Half-computed prompts that together exceed the memory evict one another for ever
        (measured on the authors' preview: 6x the prefill work), so a policy may ask that
        a prefill starts only when it can also finish; or keep the memory for others.
        Alone, a turn may always start.
        """
        self.loading.end(turn)  # One that asks has no blocks: its copy, if any, failed.
        if not running and not self.loading:
            return True
        if not self.policy.may_start(turn):
            return False
        if not self.policy.bounds_partial_prefills:
            return True
        # What is held for its own session it needs not find, nor can it be released for it:
        # the two cancel out.
        need = self.blocks_of(turn.num_tokens + 1) + self._pending.of(running)
        if self.loading:
            need += self._pending.count(self.loading.values())
        return need <= free_blocks + self.held.num_blocks

    def blocks_of(self, num_tokens: int) -> int:
        """KV blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    # --- retention -------------------------------------------------------------------
    def expired(self, load: Load, now: float) -> list[tuple[str, str]]:
        """Begin a step: forget idle sessions; returns held ones to release now, and why."""
        self.policy.on_step(self.turns.values(), load, now)
        out = self.held.expired(load, now) if self.held else []
        if now >= self._next_sweep_at:
            self._next_sweep_at = now + 60.0
            self._forget_idle(now)
        return out

    def _forget_idle(self, now: float) -> None:
        limit = now - self.limits.session_idle_s
        stale = [
            s
            for s in self.sessions.values()
            if s.num_open_turns == 0
            and (s.last_turn_finished_at or s.arrival_time) < limit
            and s.session_id not in self.held
        ]
        for session in stale:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        if self.sessions.pop(session.session_id, None) is not None:
            self.cached.changed(session.session_id)
            self.policy.on_end(session)
