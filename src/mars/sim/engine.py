# SPDX-License-Identifier: Apache-2.0
"""vLLM v1's scheduler in virtual time: the same steps, token for token.

Follows ``Scheduler.schedule`` and ``update_from_output`` of vLLM 0.30-0.33 for a text model
with one KV cache group: running requests first, in order; chunked prefill under one token
budget; prefix caching; a waiting request starts only if its whole prompt fits
(``scheduler_reserve_full_isl``); the last running request is preempted when memory is
short. With ``is_async`` a step is planned while the one before still runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from mars.core.copies import HostMemory
from mars.core.coscheduler import CoScheduler
from mars.core.cost import CostModel
from mars.core.model import Load
from mars.sim.blocks import Hit
from mars.sim.content import Anchor, Contents
from mars.sim.leap import stock_stretch
from mars.sim.memory import EngineMemory, EngineShape
from mars.sim.request import Request, Work


class Engine(EngineMemory):
    """Plans steps and takes their results, first come first served.

    Args:
        co: sessions, turns and events; its policy decides nothing here.
        shape: pool and limits.
        cost: duration of a step.
        host: host memory as a second tier; None: there is none.
    """

    def __init__(
        self,
        co: CoScheduler,
        shape: EngineShape,
        cost: CostModel,
        host: HostMemory | None = None,
    ) -> None:
        super().__init__(co, shape, host)
        self.cost = cost
        self.waiting: deque[Request] = deque()
        self.in_flight: deque[list[Work]] = deque()
        """Planned steps whose result is still out, oldest first."""
        self._contents = Contents(shape.block_size)
        self._has_preempted = False
        self._now = 0.0
        self._load = Load(sampled_at=0.0)

    # --- what the driver calls -----------------------------------------------------------
    @property
    def has_requests(self) -> bool:
        """Whether any turn is in the engine."""
        return bool(self.running or self.waiting or self.loading)

    def submit(
        self,
        request_id: str,
        session_id: str,
        prompt: Sequence[tuple[str, int, int]],
        reply: tuple[str, int, int],
        now: float,
    ) -> None:
        """A turn arrives: its prompt and the reply it will give, as content segments."""
        num_prompt = sum(count for _, _, count in prompt)
        path = self._contents.path((*prompt, reply))
        host_tokens = self._host_tokens(path, num_prompt)
        turn = self.co.submit(
            request_id,
            session_id,
            num_prompt,
            now,
            max_output_tokens=reply[2],
            num_host_tokens=host_tokens,
        )
        request = Request(turn, path, reply[2])
        self.waiting.append(request)
        if self.tier is not None:
            self.tier.arrived(request)

    def plan(self, now: float) -> float | None:
        """Plan one step; its duration in seconds, or None when nothing can be scheduled."""
        self._now = now
        self._before_step(now)
        chosen = self._schedule()
        if self.tier is not None:
            self.tier.begin(chosen, now)
        work = self._advance(chosen)
        self._after_step(work, now)
        self._evictions.tell(self._load, now)
        if not work:
            if self.tier is not None:
                self.tier.idle(now)
            return None
        self.num_steps += 1
        for request, _, _ in work:
            request.last_step = self.num_steps
        self.in_flight.append(work)
        step_s = self.cost.step_s([(r.num_computed - n, n) for r, n, _ in work])
        return step_s if self.tier is None else self.tier.end(step_s, now)

    def leap(self, now: float, end: float, until: float) -> tuple[float, float]:
        """Run a stretch of decode steps; the new (now, end). See :mod:`mars.sim.leap`."""
        until = min(until, self.quiet_until())
        if now >= until:
            return now, end
        now, new_end = self._stretch(now, end, until)
        if self.tier is not None and new_end != end:
            self.tier.leapt(new_end)
        return now, new_end

    def complete(self, now: float) -> list[str]:
        """Take the result of the oldest planned step; ids of the turns that finished."""
        self._now = now
        self._free_fenced()
        finished: list[Request] = []
        for request, num_tokens, samples in self.in_flight.popleft():
            request.num_in_flight -= num_tokens
            is_stale = request.num_stale > 0
            if is_stale:
                request.num_stale -= num_tokens
            if samples and not request.is_finished and self._sampled(request, is_stale):
                finished.append(request)
        for request in finished:
            if request.is_running:
                self.running.remove(request)
            else:
                self.waiting.remove(request)
        if self.tier is not None:
            self.tier.apply()
        return [request.request_id for request in finished]

    def control(self, message: dict[str, Any]) -> None:
        """A message of the control plane; without a policy nobody listens."""
        if message["op"] == "session_end":
            self.co.end_session(message["session_id"])

    def num_computed_tokens(self, session_id: str) -> int:
        """Tokens computed for a session so far, repeats included."""
        session = self.co.sessions.get(session_id)
        return session.num_computed_tokens if session is not None else 0

    @property
    def num_held_blocks(self) -> int:
        """Blocks referenced for tool-blocked sessions only."""
        return 0

    def load(self, now: float) -> Load:
        """The engine's side of a load sample."""
        co = self.co
        return Load(
            sampled_at=now,
            kv_blocks_total=co.num_blocks,
            kv_blocks_free=self.pool.num_free,
            kv_blocks_retained=self.num_held_blocks,
            block_size=self.shape.block_size,
            host_blocks_total=self.tier.pool.num_blocks if self.tier is not None else None,
            num_running=len(self.running),
            num_waiting=len(self.waiting) + len(self.loading),
            preemptions=co.preemptions,
            computed_tokens=co.computed_tokens,
            recomputed_tokens=co.recomputed_tokens,
        )

    # --- one step --------------------------------------------------------------------------
    def _schedule(self) -> list[tuple[Request, int]]:
        chosen: list[tuple[Request, int]] = []
        budget = self.shape.max_num_batched_tokens
        running = self.running
        self._has_preempted = False
        index = 0
        while index < len(running) and budget > 0:
            request = running[index]
            index += 1
            if _is_last_token_planned(request):
                continue
            wanted = request.num_tokens + request.num_placeholders - request.num_computed
            wanted = self._grant(request, request.num_computed, min(wanted, budget))
            if wanted == 0:
                continue
            if not self._make_room(request, wanted):
                break
            chosen.append((request, wanted))
            budget -= wanted
        if not self._has_preempted:
            self._start_waiting(chosen, budget)
        return chosen

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Blocks for a running request, preempting from the back; False if it went itself."""
        while not self._allocate(request, num_tokens):
            if self._is_fenced(self.running[-1]):
                return False
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _start_waiting(self, chosen: list[tuple[Request, int]], budget: int) -> None:
        running, limit = self.running, self.shape.max_num_seqs
        skipped: deque[Request] = deque()
        skipped_loading = self._passed
        while budget > 0 and len(running) < limit:
            queue = self.loading
            if not queue:
                queue = self._ranked()
                if not queue or not self._may_start(queue[0], self.pool.num_free):
                    break
            request = queue[0]
            if request.num_stale or not self._is_ready(request):
                (skipped_loading if request.holds_blocks else skipped).append(queue.popleft())
                continue
            hits, num_hit, num_load = self._find(request)
            if num_load is None:
                skipped.append(queue.popleft())
                continue
            if num_load:
                if not self._allocate_first(request, 0, hits, num_hit, num_load):
                    break
                skipped_loading.append(queue.popleft())
                continue
            num_computed = request.num_computed or num_hit * self.shape.block_size
            wanted = min(request.num_tokens - num_computed, budget)
            wanted = self._grant(request, num_computed, wanted)
            if wanted == 0 or not self._allocate_first(request, wanted, hits, num_hit, 0):
                break
            queue.popleft()
            running.append(request)
            request.is_running = True
            request.holds_blocks = False
            request.num_computed = num_computed
            request.is_prefilling = num_computed + wanted < request.num_tokens
            chosen.append((request, wanted))
            budget -= wanted
        self.waiting.extendleft(reversed(skipped))
        self.loading.extendleft(reversed(skipped_loading))
        skipped_loading.clear()

    def _is_ready(self, request: Request) -> bool:
        """Whether what it loads is there; if so it is cached and the turn may start."""
        if request.is_loading:
            return False
        if request.holds_blocks:
            self.pool.cache(request.table, request.path, request.table.num_blocks)
            # The last prompt token is computed, so that the next can be sampled.
            request.num_computed = min(request.num_computed, request.num_tokens - 1)
        return True

    def _find(self, request: Request) -> tuple[list[Hit], int, int | None]:
        """What the GPU has of a turn, and how many blocks more the host has (None: wait)."""
        if request.holds_blocks:
            return [], request.table.num_blocks, 0
        size = self.shape.block_size
        hits, num_hit = self.pool.lookup(request.path, (request.num_tokens - 1) // size)
        return hits, num_hit, self.tier.match(request, num_hit) if self.tier is not None else 0

    def _advance(self, chosen: list[tuple[Request, int]]) -> list[Work]:
        is_async = self.shape.is_async
        work: list[Work] = []
        for request, num_tokens in chosen:
            request.num_computed += num_tokens
            request.num_in_flight += num_tokens
            samples = request.num_computed >= request.num_tokens + request.num_placeholders
            if samples:
                request.is_prefilling = False
                if is_async:
                    request.num_placeholders += 1
            work.append((request, num_tokens, samples))
        return work

    def _sampled(self, request: Request, is_stale: bool) -> bool:
        """One more output token; whether it was the last."""
        request.num_tokens += 1
        num_output = request.num_tokens - request.num_prompt
        if self.shape.is_async and not is_stale:
            request.num_placeholders -= 1
            full = (request.num_computed - request.num_placeholders) // self.shape.block_size
            self.pool.cache(request.table, request.path, full)
        if num_output == 1:
            self.co.first_token(request.turn, self._now)
        if num_output < request.max_tokens:
            return False
        self._finish(request)
        return True

    def _preempt(self, request: Request) -> None:
        turn = request.turn
        turn.num_computed_tokens = request.num_computed
        if self.tier is not None:
            self.tier.preempted(request)
        self._free(request)
        request.is_running = request.is_prefilling = False
        request.num_computed = 0
        request.num_stale = request.num_in_flight
        request.num_placeholders = 0
        self.waiting.appendleft(request)
        self._has_preempted = True
        self.co.preempted(turn, self._now)

    def _finish(self, request: Request) -> None:
        request.is_finished = True
        turn = request.turn
        turn.num_output_tokens = request.num_tokens - request.num_prompt
        turn.session.engine_state = Anchor.of(request.path)
        is_held = self.co.finished(
            turn,
            self._load,
            self._now,
            reason="stop",
            num_cached_blocks=request.table.num_cached,
        )
        if is_held:
            self._hold(request)
        if self.tier is not None:
            self.tier.finished(request)
        self._free(request)

    # --- what a policy replaces --------------------------------------------------------------
    def _stretch(self, now: float, end: float, until: float) -> tuple[float, float]:
        return stock_stretch(self, now, end, until)

    def _before_step(self, now: float) -> None:
        self.co.expired(self._load, now)  # nothing is ever held: forgets idle sessions

    def _after_step(self, work: list[Work], now: float) -> None:
        for request, num_tokens, _ in work:
            turn = request.turn
            self.co.computed_tokens += num_tokens
            turn.session.num_computed_tokens += num_tokens
            if not turn.is_running:
                self._started(request, request.num_computed - num_tokens, now)

    def _started(self, request: Request, num_cached_tokens: int, now: float) -> None:
        anchor: Anchor | None = request.turn.session.engine_state
        size = self.shape.block_size
        known = anchor.reusable_blocks(request.path, request.num_tokens // size) if anchor else 0
        self.co.started(request.turn, num_cached_tokens, known * size, now)

    def _ranked(self) -> deque[Request]:
        """The waiting turns, as a step first looks at one of them."""
        return self.waiting

    def _may_start(self, request: Request, free: int) -> bool:
        """Whether this waiting turn, the first, may be given some of these free blocks."""
        return True

    def _grant(self, request: Request, num_computed: int, num_tokens: int) -> int:
        return num_tokens

    def _hold(self, request: Request) -> None:
        pass


def _is_last_token_planned(request: Request) -> bool:
    """Async: the step in flight will reach the output limit (vLLM's rule, with its slack)."""
    placeholders = request.num_placeholders
    limit = request.num_prompt + request.max_tokens
    return placeholders > 0 and request.num_computed + 2 - placeholders >= limit
