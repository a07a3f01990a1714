# SPDX-License-Identifier: Apache-2.0
"""The simulated engine under a MARS policy: what ``MarsScheduler`` makes of vLLM's.

Each method answers to one of the plug-in's seams and asks the :class:`CoScheduler` the
same questions at the same moments; the agreement tests hold both to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from mars.core.commands import obey
from mars.core.model import Turn
from mars.core.policy import BasePolicy
from mars.sim.blocks import BlockPool, Hit, Table
from mars.sim.engine import Engine
from mars.sim.leap import policy_stretch
from mars.sim.request import Request, Work
from mars.sim.values import ValuePool


class PolicyEngine(Engine):
    """Order, quanta, shrinking, held KV and value-ordered eviction by the policy."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._held: dict[str, Table] = {}
        self._num_held_blocks = 0
        self._num_granted = 0
        self._is_sorted = False
        self._refused: tuple[str, int] | None = None
        self._messages: list[dict[str, Any]] = []
        self._has_arrivals = False
        super().__init__(*arguments, **options)
        policy = self.co.policy
        self.may_hold = type(policy).holds_kv is not BasePolicy.holds_kv
        """Whether the policy can hold KV at all."""
        is_gated = type(policy).may_start is not BasePolicy.may_start
        self.policy_gate = policy.may_start if is_gated else None
        """The policy's own say on who may start, if it has one."""
        self._hears_steps = type(policy).on_step is not BasePolicy.on_step
        self._begun: tuple[float, list[tuple[str, str]]] | None = None

    def submit(self, *arguments: Any, **options: Any) -> None:
        super().submit(*arguments, **options)
        self._has_arrivals = True

    def plan(self, now: float) -> float | None:
        self._now = now
        messages, self._messages = self._messages, []
        for message in messages:
            self._obey(message)
        self._load = self.load(now)
        self._has_arrivals = False
        return super().plan(now)

    @property
    def num_held_blocks(self) -> int:
        return self._num_held_blocks

    # --- stretches of decode -----------------------------------------------------------------
    def _stretch(self, now: float, end: float, until: float) -> tuple[float, float]:
        return policy_stretch(self, now, end, until)

    @property
    def has_news(self) -> bool:
        """Whether something came in that the next step must look at."""
        return self._has_arrivals or bool(self._messages)

    def tell_progress(self) -> None:
        """Bring what the policies see of the running turns up to date."""
        self.co.progressed()
        for request in self.running:
            turn = request.turn
            turn.num_computed_tokens = request.num_computed
            turn.num_output_tokens = request.num_tokens - request.num_prompt

    def may_decode(self, crossing: list[Request], gated: list[Turn] | None, now: float) -> bool:
        """Give the turns that begin a block theirs; False if the step needs more than that.

        ``gated``: waiting turns that may start as soon as the policy lets them; None: any of
        them may, in their order.
        """
        num_blocks = len(crossing)
        if num_blocks > self.pool.num_free:
            return False
        self._now = now
        if self.co.held or self._hears_steps or self.pool.must_evict(num_blocks):
            self._load = self.load(now)
        if self._begin(now):
            return False
        if gated is None:
            if not self._is_shut(num_blocks):
                return False
        elif gated and self.policy_gate is not None and any(map(self.policy_gate, gated)):
            return False
        self._begun = None
        for request in crossing:
            self.pool.take(request.table, 1)
        return True

    def _is_shut(self, num_blocks: int) -> bool:
        """Whether the first waiting turn may not start in a step that takes so many blocks."""
        if len(self.running) >= self.shape.max_num_seqs:
            return True
        if self.co.policy.evicts_by_value and self.pool.must_evict(num_blocks):
            return False  # what is evicted may be a waiting turn's, and change the order
        rank_key, now = self.co.rank_key, self._now
        first = min(self.waiting, key=lambda r: rank_key(r.turn, now))
        return not self._may_start(first, self.pool.num_free - num_blocks)

    def tell_evictions(self, now: float) -> None:
        """End a step of a stretch: say what was taken in it."""
        self._evictions.tell(self._load, now)

    def _begin(self, now: float) -> list[tuple[str, str]]:
        """What expired by this step; asked once, also when a stretch ends in front of it."""
        if self._begun is None or self._begun[0] != now:
            self._begun = (now, self.co.expired(self._load, now))
        return self._begun[1]

    # --- order -------------------------------------------------------------------------------
    def _before_step(self, now: float) -> None:
        for session_id, reason in self._begin(now):
            self._release(session_id, reason)
        self._begun = None
        self._num_granted = 0
        self._is_sorted = False
        self.tell_progress()
        self.running = self._ordered(self.running, now)
        for position, request in enumerate(self.running):
            request.position = position

    def _ranked(self) -> deque[Request]:
        # Sorted only where the order can matter; what was evicted until now counts in it.
        if not self._is_sorted:
            self._is_sorted = True
            self.waiting = deque(self._ordered(self.waiting, self._now))
        return self.waiting

    def _ordered(self, requests: Iterable[Request], now: float) -> list[Request]:
        """As ``CoScheduler.rank_key`` has it, without a call for each."""
        rank = self.co.policy.rank
        keyed = [
            (rank(turn, now), turn.arrival_time, request.request_id, request)
            for request in requests
            for turn in (request.turn,)
        ]
        keyed.sort()
        return [entry[3] for entry in keyed]

    def _after_step(self, work: list[Work], now: float) -> None:
        served: list[tuple[Turn, int]] = []
        for request, num_tokens, _ in work:
            if not request.turn.is_running:
                self._started(request, request.num_computed - num_tokens, now)
                if request.session_id in self._held:
                    self._release(request.session_id, "returned")
            served.append((request.turn, num_tokens))
        self.co.served(served, now)

    # --- memory ------------------------------------------------------------------------------
    def _make_pool(self) -> BlockPool:
        if not self.co.policy.evicts_by_value:
            return super()._make_pool()
        co = self.co
        return ValuePool(
            self.shape.num_usable_blocks,
            value=lambda session_id: co.cached.value(session_id, self._load, self._now),
            evicted=lambda session_id, num, value: co.cached.evicted(
                session_id, num, value, self._now
            ),
            clock=lambda: self._now,
            revalued=co.cached.take_revalued,
        )

    def _may_start(self, request: Request, free: int) -> bool:
        if self._refused is not None and self.running:
            if self._refused[0] == request.request_id and free <= self._refused[1]:
                return False
            self._refused = None
        return self.co.may_start(request.turn, [r.turn for r in self.running], free)

    def _grant(self, request: Request, num_computed: int, num_tokens: int) -> int:
        if num_tokens <= 1:
            self._num_granted += 1
            return num_tokens
        granted, policy = num_tokens, self.co.policy
        quantum = policy.prefill_quantum(request.turn, self._now)
        if quantum is not None:
            granted = max(1, min(granted, quantum))
        if request.is_running and policy.shrinks_chunks:
            granted = self._fit(request, num_computed, granted)
        self._num_granted += granted > 0
        return granted

    def _fit(self, request: Request, num_computed: int, wanted: int) -> int:
        """Cut a running prefill chunk to free memory; 0: wait for the better-ranked."""
        free = self.pool.num_free + self._num_held_blocks - request.position
        room = (request.table.num_blocks + free) * self.shape.block_size - num_computed
        if wanted <= room:
            return wanted
        if room > 0:
            self.co.shrunk(request.turn, wanted, room, self._now)
            return room
        return 0 if self._num_granted else wanted

    def _allocate(self, request: Request, num_tokens: int) -> bool:
        if super()._allocate(request, num_tokens):
            return True
        for session_id in self._reclaimable(request):
            self._release(session_id, "pressure")
            if super()._allocate(request, num_tokens):
                return True
        return False

    def _allocate_first(
        self, request: Request, num_tokens: int, hits: list[Hit], num_hit: int, num_load: int
    ) -> bool:
        if super()._allocate_first(request, num_tokens, hits, num_hit, num_load):
            return True
        for session_id in self._reclaimable(request):
            self._release(session_id, "pressure")
            if super()._allocate_first(request, num_tokens, hits, num_hit, num_load):
                return True
        self._refused = (request.request_id, self.pool.num_free)
        return False

    def _reclaimable(self, request: Request) -> list[str]:
        if not self.co.held:
            return []
        return self.co.held.reclaimable(request.turn, self.pool.num_free, self._load, self._now)

    def _hold(self, request: Request) -> None:
        table = self._held[request.session_id] = self.pool.share(request.table)
        self._num_held_blocks += table.num_blocks

    def _release(self, session_id: str, reason: str) -> None:
        table = self._held.pop(session_id)
        self._num_held_blocks -= table.num_blocks
        if isinstance(self.pool, ValuePool):
            self.pool.free(table, session_id, is_used=False)
        else:
            self.pool.free(table, session_id)
        self.co.held.released(session_id, reason, self._now)

    # --- the control plane -------------------------------------------------------------------
    def control(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    def _obey(self, message: dict[str, Any]) -> None:
        ended = obey(self.co, message, self._now)
        if ended is not None:
            self._release(ended, "ended")
