# SPDX-License-Identifier: Apache-2.0
"""vLLM's own scheduler with the decisions of a MARS policy.

``schedule()`` is not copied: before each step the running list and the waiting queue are
put into the policy's order, and five seams of :class:`AsyncScheduler` ask the
:class:`~mars.core.coscheduler.CoScheduler` (docs/vllm.md lists them).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy as VllmPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from mars.config import EngineConfig, engine_config
from mars.core.commands import obey
from mars.core.coscheduler import CoScheduler
from mars.core.evictions import EvictionTally
from mars.core.model import Load, Turn
from mars.engine.vllm.blocks import ValueOrderedBlocks
from mars.engine.vllm.compat import abilities, check_config, check_seams
from mars.engine.vllm.ends import finish_reason, lacks_grammar
from mars.engine.vllm.evictions import EvictionWatch
from mars.engine.vllm.host import host_facts, loaded_tokens
from mars.engine.vllm.integrity import check_integrity
from mars.engine.vllm.link import EngineLink, rank_of
from mars.engine.vllm.order import ServiceOrder
from mars.engine.vllm.prefix import PrefixAnchor
from mars.engine.vllm.queue import RankedQueue
from mars.engine.vllm.retained import CachedBlocks, RetainedBlocks
from mars.engine.vllm.sampler import EngineSampler
from mars.engine.vllm.settings import make_policy, retention_limits

logger = init_logger(__name__)


class MarsScheduler(AsyncScheduler):
    """Schedules turns of sessions instead of unrelated requests.

    Raises:
        UnsupportedEngineError: at start, when this vLLM lacks a seam.
        UnknownPolicyError: at start, when ``policy`` names none.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)
    """Seconds; replaced by virtual time in the agreement tests."""

    link_type: Callable[[EngineConfig, int], EngineLink] = EngineLink

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_seams()
        check_config(kwargs.get("vllm_config") or args[0])
        super().__init__(*args, **kwargs)
        config = engine_config(self.vllm_config.additional_config)
        self._can = abilities(self.vllm_config, self.kv_cache_config)
        for reason in self._can.reasons:
            logger.warning("MARS runs with less: %s", reason)
        self._host = host_facts(self)
        policy = make_policy(config, self._host)
        pool = self.kv_cache_manager.block_pool
        self._pool = pool
        self._link = self.link_type(config, rank_of(self.vllm_config.parallel_config))
        self._co = CoScheduler(
            policy,
            num_blocks=pool.num_gpu_blocks - 1,
            block_size=self.block_size,
            emit=self._link.emit,
            limits=retention_limits(config),
        )
        self._sampler = EngineSampler(config.sample_interval_s)
        self._retained = RetainedBlocks(pool)
        self._cached = CachedBlocks(self.kv_cache_manager)
        self._values: ValueOrderedBlocks | None = None
        self._follows = not policy.keeps_engine_order
        self._caps_prefill = self._follows and self._can.caps_prefill
        self._now = self.clock()
        self._load = self._current_load(self._now)
        self._num_granted = 0
        self._order = ServiceOrder(self._co)
        self._check_every = config.check_integrity_every
        self._num_calls = 0
        self._refused: tuple[str, int] | None = None
        self._awaiting_first: dict[str, Request] = {}
        self._input_ended: str | None = None
        if not self.scheduler_config.async_scheduling:
            self._wait_for_tokens()
        self._stock_allocate = self.kv_cache_manager.allocate_slots
        if self._follows:
            self._take_over()
        self._evictions = EvictionTally(self._co)
        self._watch: EvictionWatch | None = None
        if self._values is None and self._can.holds_kv:
            self._watch = EvictionWatch(pool, self._evictions.take)
        self._sample(self._now)
        logger.info("MARS policy %r on %d KV blocks", config.policy, self._co.num_blocks)

    def _wait_for_tokens(self) -> None:
        # Without async scheduling vLLM waits for a token before it schedules the next, which
        # shows once pipeline stages put two steps in flight: no placeholders then.
        for name in ("_update_after_schedule", "_update_request_with_output"):
            setattr(self, name, MethodType(getattr(Scheduler, name), self))

    def _take_over(self) -> None:
        self.policy = VllmPolicy.PRIORITY
        self.waiting = RankedQueue(
            self._has_seat, lambda r: self._order.sorted(r, self._now), self._may_start
        )
        self.kv_cache_manager.allocate_slots = self._allocate
        if self._co.policy.evicts_by_value and self._can.holds_kv:
            self._values = ValueOrderedBlocks(
                self._pool.free_block_queue,
                value=lambda session_id: self._co.cached.value(session_id, self._load, self._now),
                evicted=lambda session_id, n, value: self._co.cached.evicted(
                    session_id, n, value, self._now
                ),
                clock=lambda: self._now,
                revalued=self._co.cached.take_revalued,
            )
            cast(Any, self._pool).free_block_queue = self._values

    # --- one step ----------------------------------------------------------------------
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        now = self._now = self.clock()
        self._take_commands()
        self._load = self._current_load(now)
        for session_id, reason in self._co.expired(self._load, now):
            self._release(session_id, reason)
        if self._follows:
            self._before_step(now)
        output = super().schedule(*args, **kwargs)
        self._after_step(output, now)
        if self._watch is not None:
            self._watch.hand_over()
            self._evictions.tell(self._load, now)
        self._sampler.step_started(output.total_num_scheduled_tokens, now)
        return output

    def _before_step(self, now: float) -> None:
        self._num_granted = 0
        self._order.sort_running(self.running, now)
        self.waiting.begin_step()

    def _after_step(self, output: SchedulerOutput, now: float) -> None:
        turns = self._co.turns
        served: list[tuple[Turn, int]] = []
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            turn = turns[request_id]
            if not turn.is_running:
                request = self.requests[request_id]
                self._started(turn, request, request.num_computed_tokens - num_tokens, now)
            served.append((turn, num_tokens))
        self._co.served(served, now)

    def _started(self, turn: Turn, request: Request, num_cached_tokens: int, now: float) -> None:
        anchor: PrefixAnchor | None = turn.session.engine_state
        known = anchor.reusable_blocks(request.block_hashes) if anchor else 0
        self._co.started(turn, num_cached_tokens, known * self.hash_block_size, now)
        if turn.first_token_at is None:
            self._awaiting_first[request.request_id] = request
        if turn.session.session_id in self._retained:
            self._release(turn.session.session_id, "returned")

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        now = self._now = self.clock()
        outputs = super().update_from_output(*args, **kwargs)
        for request_id, request in list(self._awaiting_first.items()):
            if request.num_output_tokens > 0:
                self._first_token(request_id, now)
        self._sampler.step_ended(args[0].total_num_scheduled_tokens, now)
        if self._link.is_listening:
            self._sample(now)
        self._num_calls += 1
        if self._check_every and self._num_calls % self._check_every == 0:
            self.check_integrity()
        return outputs

    def check_integrity(self) -> None:
        """Check the accounting of blocks, turns and sessions.

        Raises:
            IntegrityError: lists what does not agree.
        """
        check_integrity(self, co=self._co, retained=self._retained, values=self._values)

    def _sample(self, now: float) -> None:
        for sample in self._sampler.samples(self._co, self._current_load(now), now):
            self._link.emit(sample)
        self._link.flush()

    def _first_token(self, request_id: str, now: float) -> None:
        if self._awaiting_first.pop(request_id, None) is not None:
            self._co.first_token(self._co.turns[request_id], now)

    # --- turns in and out --------------------------------------------------------------
    def add_request(self, request: Request) -> None:
        # What was said of the session's former life must not be applied to its next one.
        self._now = self.clock()
        self._take_commands()
        if request.request_id not in self.requests:
            self._co.submit(
                request.request_id,
                request.session_id,
                request.num_prompt_tokens,
                self.clock(),
                max_output_tokens=request.max_tokens,
                priority=request.priority,
                num_host_tokens=self._host and self._host.num_leading_tokens(request),
            )
        elif not request.resumable:
            self._input_ended = request.request_id
        super().add_request(request)
        self._input_ended = None

    def _update_request_as_session(self, session: Request, *args: Any, **kwargs: Any) -> None:
        """Streaming input: the next piece of the prompt is here."""
        super()._update_request_as_session(session, *args, **kwargs)
        turn = self._co.turns[session.request_id]
        turn.num_prompt_tokens = session.num_prompt_tokens
        turn.num_output_tokens = session.num_output_tokens

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._co.preempted(self._co.turns[request.request_id], self._now)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # The turn ends here; a KV connector may keep blocks and request for long after.
        self._finished(self._co.turns[request.request_id], request)
        return super()._free_request(request, *args, **kwargs)

    def _finished(self, turn: Turn, request: Request) -> None:
        now = self.clock()
        if request.num_output_tokens > 0:
            self._first_token(request.request_id, now)
        self._awaiting_first.pop(request.request_id, None)
        turn.num_output_tokens = request.num_output_tokens
        blocks = self._cached.look(request) if self._can.holds_kv else []
        if turn.first_scheduled_at is not None:
            turn.session.engine_state = PrefixAnchor.of(request.block_hashes)
        # vLLM ends a stream of inputs that waits for the next one by aborting it.
        reason = "stop" if request.request_id == self._input_ended else finish_reason(request)
        hold = self._co.finished(
            turn, self._load, now, reason=reason, num_cached_blocks=len(blocks)
        )
        session_id, held = turn.session.session_id, self._co.held
        if hold:
            self._retained.hold(session_id, blocks)
        elif reason == "abort" and session_id in held and not turn.session.num_open_turns:
            # Its client went away: nobody comes back for what was held before this turn.
            self._release(session_id, "aborted")

    def _free_request_blocks(self, request: Request) -> None:
        values = self._values
        owner = request.session_id or request.request_id
        if values is None:
            if self._watch is not None:
                self._watch.use(owner, self._cached.take(request))
            super()._free_request_blocks(request)
            return
        values.use(owner, self._cached.take(request))
        values.freeing = owner
        super()._free_request_blocks(request)
        values.freeing = None

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        for session_id in list(self._co.held):
            self._release(session_id, "reset")
        is_reset = super().reset_prefix_cache(*args, **kwargs)
        if is_reset:
            self._refused = None
            self._co.cached.forget()
            if self._values is not None:
                self._values.forget()
        return is_reset

    def shutdown(self) -> None:
        super().shutdown()
        self._link.close()

    # --- memory ------------------------------------------------------------------------
    def _has_seat(self) -> bool:
        # Newer vLLM lets more be active than may run in one step.
        limit = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)
        return len(self.running) < limit

    def _may_start(self, request: Request) -> bool:
        if lacks_grammar(request):
            return True
        free = self._pool.get_num_free_blocks()
        # A refused head is not looked up again until memory came free: same result,
        # without vLLM's prefix lookup per step (27% of its scheduling time, VLLM.md).
        # With nobody running it is: what was denied it for others' sake is now its own.
        refused = self._refused
        if refused is not None and self.running:
            if refused[0] == request.request_id and free <= refused[1]:
                return False
            self._refused = None
        turn = self._co.turns[request.request_id]
        return self._co.may_start(turn, self._order.turns_of(self.running), free)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        granted = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        # A decode with its drafts is one piece; vLLM asserts on that. Where a picture's
        # tokens may be cut is for vLLM to say, and it has been asked before us.
        is_decode = granted <= 1 + self.num_spec_tokens
        if is_decode or not self._caps_prefill or request.mm_features:
            self._num_granted += 1
            return granted
        turn = self._co.turns[request.request_id]
        quantum = self._co.policy.prefill_quantum(turn, self._now)
        if quantum is not None:
            granted = max(1, min(granted, quantum))
        if request.status == RequestStatus.RUNNING and self._co.policy.shrinks_chunks:
            granted = self._fit(turn, request, num_computed_tokens, granted)
        self._num_granted += granted > 0
        return granted

    def _fit(self, turn: Turn, request: Request, num_computed_tokens: int, wanted: int) -> int:
        """Cut a running prefill chunk to free memory; 0: wait for the better-ranked.

        A block is left for each better-ranked turn, so that decodes find their next one.
        """
        owned = len(self.kv_cache_manager.get_blocks(request.request_id).blocks[0])
        free = self._pool.get_num_free_blocks() + self._retained.num_blocks - request.priority
        room = (owned + free) * self.block_size - num_computed_tokens - self.num_lookahead_tokens
        if wanted <= room:
            return wanted
        if room > 0:
            self._co.shrunk(turn, wanted, room, self._now)
            return room
        # vLLM counts the adapters of scheduled requests alone: a waiting one could bring in
        # one too many, so with LoRA nobody is kept waiting while running.
        return 0 if self._num_granted and not self.lora_config else wanted

    def _allocate(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        blocks = self._stock_allocate(request, *args, **kwargs)
        if blocks is None and self._co.held:
            turn = self._co.turns[request.request_id]
            for session_id in self._co.held.reclaimable(
                turn, self._pool.get_num_free_blocks(), self._load, self._now
            ):
                self._release(session_id, "pressure")
                blocks = self._stock_allocate(request, *args, **kwargs)
                if blocks is not None:
                    break
        if blocks is not None and kwargs.get("delay_cache_blocks"):
            self._co.loading.begin(self._co.turns[request.request_id], loaded_tokens(kwargs))
        if blocks is None and request.status != RequestStatus.RUNNING:
            self._refused = (request.request_id, self._pool.get_num_free_blocks())
        return blocks

    def _release(self, session_id: str, reason: str) -> None:
        if self._values is not None:
            self._values.freeing = session_id
        self._retained.release(session_id)
        if self._values is not None:
            self._values.freeing = None
        self._co.held.released(session_id, reason, self._now)

    # --- the control plane -------------------------------------------------------------
    def _take_commands(self) -> None:
        for message in self._link.commands():
            try:
                ended = obey(self._co, message, self._now)
            except (KeyError, TypeError, ValueError) as error:
                logger.warning("MARS control message %r ignored: %r", message, error)
                continue
            if ended is not None:
                self._release(ended, "ended")

    def _current_load(self, now: float) -> Load:
        return Load(
            sampled_at=now,
            kv_blocks_total=self._co.num_blocks,
            kv_blocks_free=self._pool.get_num_free_blocks(),
            kv_blocks_retained=self._retained.num_blocks,
            block_size=self.block_size,
            host_blocks_total=self._host.num_blocks if self._host else None,
            num_running=len(self.running),
            num_waiting=self.get_request_counts()[1],
            preemptions=self._co.preemptions,
            computed_tokens=self._co.computed_tokens,
            recomputed_tokens=self._co.recomputed_tokens,
        )
