# SPDX-License-Identifier: Apache-2.0
"""vLLM's real scheduler, stepped by hand with whichever of its features is switched on."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from mars.core.cost import CostModel
from mars.core.events import Event
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank
from mars.engine.vllm.integrity import check_integrity
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape

BLOCK = 16
STEP_S = 0.01
FULL = FullAttentionSpec(block_size=BLOCK, num_kv_heads=4, head_size=16, dtype=torch.bfloat16)
SMALL = VirtualShape(num_blocks=60, block_size=BLOCK, max_num_batched_tokens=256, max_num_seqs=16)
ASYNC = dataclasses.replace(SMALL, is_async=True)
FREE = CostModel(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class EverySeam(BasePolicy):
    """Shortest first, capped, shrunk, held and evicted by size; memory is not kept free."""

    evicts_by_value = True
    shrinks_chunks = True

    def rank(self, turn: Turn, now: float) -> Rank:
        return (float(turn.num_uncached_tokens), turn.arrival_time)

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        return 100

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        return float(session.context_tokens)

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        return now - (session.last_turn_finished_at or now) < 1.0


class Bounded(BasePolicy):
    """In order of arrival, each only when it has room to finish its prefill."""

    bounds_partial_prefills = True


EVERY_SEAM = f"{__name__}.EverySeam"
BOUNDED = f"{__name__}.Bounded"
POLICIES = ["fcfs", "mars-paper", "mars", EVERY_SEAM]
SAMPLED = 5
"""The token that is sampled, unless a test says otherwise."""


class FeatureEngine(VirtualEngine):
    """Checks the accounting after each step.

    Args:
        directory: an empty folder for the model's configuration.
        policy: scheduling policy; None: vLLM's own scheduler.
        change: alters vLLM's configuration.
        specs: one KV cache group each.
        num_in_flight: steps planned before the result of the first is taken.
        sample: the next token of a request.
    """

    def __init__(
        self,
        directory: Path,
        policy: str | None,
        change: Callable[[VllmConfig], None] = lambda _: None,
        *,
        shape: VirtualShape = SMALL,
        specs: Sequence[Any] = (FULL,),
        num_in_flight: int = 1,
        sample: Callable[[Request], int] = lambda _: SAMPLED,
    ) -> None:
        init_none_hash(sha256)
        self._change = change
        self._specs = specs
        self._num_in_flight = num_in_flight
        self._sample = sample
        self._planned: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self._rng = random.Random(1)
        self.events: list[Event] = []
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self.steps: list[dict[str, int]] = []
        self.connector_says: Callable[[SchedulerOutput], KVConnectorOutput | None] = lambda _: None
        mars = None if policy is None else {"policy": policy, "retention": {"max_share": 1.0}}
        super().__init__(shape, FREE, directory, mars, self.events.append)

    def request(
        self,
        name: str,
        num_prompt: int,
        num_reply: int,
        *,
        session: str | None = None,
        first: int = 1,
        sampling: dict[str, Any] | None = None,
        **more: Any,
    ) -> Request:
        """A turn whose prompt is ``first``, ``first + 1`` and so on."""
        params = SamplingParams(**{"max_tokens": num_reply, "ignore_eos": True, **(sampling or {})})
        fields: dict[str, Any] = {
            "request_id": name,
            "prompt_token_ids": list(range(first, first + num_prompt)),
            "sampling_params": params,
            "pooling_params": None,
            "arrival_time": self.now,
            "block_hasher": get_request_block_hasher(BLOCK, sha256),
            "session_id": session,
        }
        return Request(**{**fields, **more})

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add_request(request)

    def step(self) -> bool:
        """Plan a step, take the result of the oldest; whether anything was planned."""
        self.now += STEP_S
        output = self.scheduler.schedule()
        self._planned.append((output, self._execute(output)))
        is_planned = output.total_num_scheduled_tokens > 0
        if is_planned:
            self.steps.append(dict(output.num_scheduled_tokens))
        if not is_planned or len(self._planned) >= self._num_in_flight:
            while self._planned:
                self._take(*self._planned.popleft())
                if is_planned:
                    break
        self.check()
        return is_planned

    def drain(self, limit: int = 3000) -> None:
        """Until nothing is left; fails when the engine stands still."""
        while self.scheduler.has_requests() or self._planned:
            self.step()
            limit -= 1
            assert limit, "the engine stands still"

    def check(self) -> None:
        if isinstance(self.scheduler, MarsScheduler):
            self.scheduler.check_integrity()
        else:
            check_integrity(self.scheduler)

    def of_kind(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.kind == kind]

    def count(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)

    @property
    def plugin(self) -> Any:
        """The plug-in, whose private parts a test may look at."""
        return self.scheduler

    def _execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        ids = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for request_id in ids:
            request = self.scheduler.requests[request_id]
            num_drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
            num_tokens = 1 + self._rng.randint(0, num_drafts)
            prefills = request.is_prefill_chunk or request.pooling_params is not None
            sampled.append([] if prefills else [self._sample(request)] * num_tokens)
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
            pooler_output=self._pooled(ids),
            kv_connector_output=self.connector_says(output),
        )

    def _pooled(self, ids: list[str]) -> list[Any] | None:
        requests = [self.scheduler.requests[request_id] for request_id in ids]
        if not any(r.pooling_params for r in requests):
            return None
        return [
            torch.zeros(1) if r.num_computed_tokens >= r.num_prompt_tokens else None
            for r in requests
        ]

    def _take(self, output: SchedulerOutput, result: ModelRunnerOutput) -> None:
        for batch in self.scheduler.update_from_output(output, result).values():
            for one in batch.outputs:
                self.tokens.setdefault(one.request_id, []).extend(one.new_token_ids)
                if one.finish_reason is not None:
                    self.reasons[one.request_id] = str(one.finish_reason)
        if self.scheduler.num_spec_tokens and not self.shape.is_async:
            drafts = [[SAMPLED] * self.scheduler.num_spec_tokens for _ in result.req_ids]
            self.scheduler.update_draft_token_ids(DraftTokenIds(list(result.req_ids), drafts))

    def _make(self, directory: Path, mars: Any) -> Scheduler:
        config = self._vllm_config(directory, mars)
        config.scheduler_config.async_scheduling = self.shape.is_async
        self._change(config)
        names = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(self._specs)]
        config.cache_config.num_gpu_blocks = self.shape.num_blocks
        stock = AsyncScheduler if self.shape.is_async else Scheduler
        return (stock if mars is None else self._on_my_clock())(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(self.shape.num_blocks, [], names),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=False,
        )


def same_as_stock(directory: Path, change: Callable[[VllmConfig], None], **more: Any) -> None:
    """``fcfs`` under the plug-in takes vLLM's own steps."""
    engines = [FeatureEngine(directory, policy, change, **more) for policy in (None, "fcfs")]
    for engine in engines:
        crowd(engine)
    assert engines[0].steps == engines[1].steps
    assert engines[0].reasons == engines[1].reasons


def crowd(engine: FeatureEngine, num: int = 24, **more: Any) -> dict[str, int]:
    """Sessions that together want three times the memory, a step apart, to their end.

    Returns the length of the reply that each turn is to have.
    """
    rng = random.Random(3)
    wanted: dict[str, int] = {}
    for index in range(num):
        name, session = f"r{index}", f"s{index % 8}"
        first = 1 + 1000 * (index % 8)
        wanted[name] = rng.randint(2, 40)
        own: dict[str, Any] = {
            key: value(index) if callable(value) else value for key, value in more.items()
        }
        engine.add(
            engine.request(
                name, rng.randint(20, 400), wanted[name], session=session, first=first, **own
            )
        )
        engine.step()
    engine.drain()
    return wanted


def lengths(engine: FeatureEngine) -> dict[str, int]:
    """Tokens that each turn replied."""
    return {name: len(tokens) for name, tokens in engine.tokens.items()}
