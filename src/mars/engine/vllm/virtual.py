# SPDX-License-Identifier: Apache-2.0
"""vLLM's real scheduler in virtual time: the oracle of the simulator's agreement tests.

No model, no worker, no wall clock: steps take what the cost model says, blocks are named
by content instead of hashed, and every request samples until its reply is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from mars.core.copies import HostMemory
from mars.core.cost import CostModel
from mars.core.events import Event
from mars.core.model import Load
from mars.engine.emulated.offload import OffloadWorker
from mars.engine.vllm.scheduler import MarsScheduler

_MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 1048576,
    "torch_dtype": "bfloat16",
}
_TOKEN = 7
_BYTES_PER_BLOCK = 4096
"""Of the model above with blocks of 16 tokens: what vLLM sizes its host pool by."""


@dataclass(slots=True, frozen=True)
class VirtualShape:
    """vLLM's settings that decide a step; ``num_blocks`` is its ``num_gpu_blocks``."""

    num_blocks: int
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    watermark: float = 0.0
    is_async: bool = False


class VirtualTimeScheduler(MarsScheduler):
    """The plug-in on a clock that stands still between steps."""

    def load(self, now: float) -> Load:
        """The sample that its policy would see."""
        return self._current_load(now)

    def num_computed_tokens(self, session_id: str) -> int:
        """Tokens computed for a session so far."""
        session = self._co.sessions.get(session_id)
        return session.num_computed_tokens if session is not None else 0


class VirtualEngine:
    """Drives ``Scheduler``, ``AsyncScheduler`` or ``MarsScheduler`` step by step.

    Args:
        shape: pool and limits.
        cost: duration of a step.
        directory: an empty folder for the model's configuration.
        mars: ``EngineConfig`` fields; None: vLLM's own scheduler.
        emit: receives the events of a ``MarsScheduler``.
        host: host memory as a second tier, by vLLM's own ``OffloadingConnector``.
    """

    def __init__(
        self,
        shape: VirtualShape,
        cost: CostModel,
        directory: Path,
        mars: Mapping[str, Any] | None = None,
        emit: Callable[[Event], None] | None = None,
        host: HostMemory | None = None,
    ) -> None:
        self.shape = shape
        self.cost = cost
        self._host = host
        self._offload = OffloadWorker(host) if host is not None else None
        self._free_at = 0.0
        self.num_steps = 0
        self.now = 0.0
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self._finished: list[str] = []
        self._link = Wire(emit or (lambda _: None))
        self.scheduler = self._make(directory, mars)

    # --- what the driver calls -----------------------------------------------------------
    @property
    def has_requests(self) -> bool:
        """Whether any turn is in the engine."""
        return self.scheduler.get_num_unfinished_requests() > 0

    def submit(
        self,
        request_id: str,
        session_id: str,
        prompt: Sequence[tuple[str, int, int]],
        reply: tuple[str, int, int],
        now: float,
    ) -> None:
        """A turn arrives: its prompt and the reply it will give, as content segments."""
        self.now = now
        num_prompt = sum(count for _, _, count in prompt)
        request = Request(
            request_id=request_id,
            prompt_token_ids=[_TOKEN] * num_prompt,
            sampling_params=SamplingParams(max_tokens=reply[2], ignore_eos=True),
            pooling_params=None,
            arrival_time=now,
            block_hasher=ContentHasher((*prompt, reply), self.shape.block_size),
            session_id=session_id,
        )
        self.scheduler.add_request(request)

    def plan(self, now: float) -> float | None:
        """Plan one step; its duration in seconds, or None when nothing can be scheduled."""
        self.now = now
        output = self.scheduler.schedule()
        start = self._start_copies(output, now)
        if not output.num_scheduled_tokens:
            copied = self._end_copies(output, max(now, start))
            if copied is not None:
                self.scheduler.update_from_output(output, _result([], [], copied))
            return None
        self.num_steps += 1
        ids: list[str] = []
        sampled: list[list[int]] = []
        work: list[tuple[int, int]] = []
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[request_id]
            ids.append(request_id)
            sampled.append([] if request.is_prefill_chunk else [_TOKEN])
            work.append((request.num_computed_tokens - num_tokens, num_tokens))
        begin = max(now, self._free_at)
        step_s = max(0.0, start - begin) + self.cost.step_s(work)
        self._free_at = begin + step_s
        copied = self._end_copies(output, max(now, start))
        self._in_flight.append((output, _result(ids, sampled, copied)))
        return step_s

    def _start_copies(self, output: SchedulerOutput, now: float) -> float:
        """Copies that precede the step; when those are done that it waits for."""
        metadata: Any = output.kv_connector_metadata
        return self._offload.before(metadata, now, self._free_at) if self._offload else 0.0

    def _end_copies(self, output: SchedulerOutput, now: float) -> KVConnectorOutput | None:
        """Copies that follow the step; what is done by now."""
        metadata: Any = output.kv_connector_metadata
        return self._offload.after(metadata, now, self._free_at) if self._offload else None

    def complete(self, now: float) -> list[str]:
        """Take the result of the oldest planned step; ids of the turns that finished."""
        self.now = now
        output, result = self._in_flight.popleft()
        outputs = self.scheduler.update_from_output(output, result)
        return [
            one.request_id
            for batch in outputs.values()
            for one in batch.outputs
            if one.finish_reason is not None
        ]

    def leap(self, now: float, end: float, until: float) -> tuple[float, float]:
        """The real scheduler takes every step by itself."""
        return now, end

    def control(self, message: dict[str, Any]) -> None:
        """A message of the control plane, read at the next step."""
        self._link.messages.append(message)

    def num_computed_tokens(self, session_id: str) -> int:
        """Tokens computed for a session so far; stock vLLM does not count them."""
        scheduler = self.scheduler
        if isinstance(scheduler, VirtualTimeScheduler):
            return scheduler.num_computed_tokens(session_id)
        return 0

    def load(self, now: float) -> Load:
        """The engine's side of a load sample."""
        scheduler = self.scheduler
        if isinstance(scheduler, VirtualTimeScheduler):
            return scheduler.load(now)
        pool = scheduler.kv_cache_manager.block_pool
        return Load(
            sampled_at=now,
            kv_blocks_total=pool.num_gpu_blocks - 1,
            kv_blocks_free=pool.get_num_free_blocks(),
            block_size=self.shape.block_size,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
        )

    # --- building it -----------------------------------------------------------------------
    def _make(self, directory: Path, mars: Mapping[str, Any] | None) -> Scheduler:
        shape = self.shape
        config = self._vllm_config(directory, mars)
        # The CPU platform, if that is ours, has just switched it off.
        config.scheduler_config.async_scheduling = shape.is_async
        spec = FullAttentionSpec(
            block_size=shape.block_size, num_kv_heads=4, head_size=16, dtype=torch.bfloat16
        )
        kv = KVCacheConfig(
            num_blocks=shape.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        config.cache_config.num_gpu_blocks = shape.num_blocks
        stock = AsyncScheduler if shape.is_async else Scheduler
        kind = stock if mars is None else self._on_my_clock()
        return kind(
            vllm_config=config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(config),
            block_size=shape.block_size,
            log_stats=False,
        )

    def _on_my_clock(self) -> type[VirtualTimeScheduler]:
        def clock() -> float:
            return self.now

        def link(*_: object) -> Wire:
            return self._link

        members = {"clock": staticmethod(clock), "link_type": staticmethod(link)}
        return type("VirtualTimeScheduler", (VirtualTimeScheduler,), members)

    def _offloading(self) -> KVTransferConfig | None:
        if self._host is None:
            return None
        return KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            kv_connector_extra_config={
                "cpu_bytes_to_use": self._host.num_blocks * _BYTES_PER_BLOCK
            },
        )

    def _vllm_config(self, directory: Path, mars: Mapping[str, Any] | None) -> VllmConfig:
        shape = self.shape
        (directory / "config.json").write_text(json.dumps(_MODEL))
        longest = min((shape.num_blocks - 1) * shape.block_size, 1 << 20)
        return VllmConfig(
            model_config=ModelConfig(
                model=str(directory),
                skip_tokenizer_init=True,
                max_model_len=longest,
                dtype="bfloat16",
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=shape.max_num_seqs,
                max_num_batched_tokens=shape.max_num_batched_tokens,
                max_model_len=longest,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                async_scheduling=shape.is_async,
                watermark=shape.watermark,
            ),
            cache_config=CacheConfig(block_size=shape.block_size, enable_prefix_caching=True),
            kv_transfer_config=self._offloading(),
            additional_config={"mars": dict(mars)} if mars is not None else {},
        )


def _result(
    ids: list[str], sampled: list[list[int]], copied: KVConnectorOutput | None
) -> ModelRunnerOutput:
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
        sampled_token_ids=sampled,
        kv_connector_output=copied,
    )


class ContentHasher:
    """Names the full blocks of a request by content: equal prefix, equal name."""

    def __init__(self, segments: Sequence[tuple[str, int, int]], block_size: int) -> None:
        self._block_size = block_size
        self._pieces = _pieces_by_block(segments, block_size)
        self._parent = b""

    def __call__(self, request: Request) -> list[Any]:
        """Names of the blocks that became full since the last call."""
        names: list[Any] = []
        for index in range(len(request.block_hashes), request.num_tokens // self._block_size):
            piece = self._parent + repr(self._pieces[index]).encode()
            self._parent = hashlib.blake2b(piece, digest_size=16).digest()
            names.append(self._parent)
        return names


def _pieces_by_block(
    segments: Sequence[tuple[str, int, int]], size: int
) -> list[tuple[tuple[str, int, int], ...]]:
    """What each full block consists of, one maximal piece per content."""
    blocks: list[tuple[tuple[str, int, int], ...]] = []
    pieces: list[tuple[str, int, int]] = []
    filled = 0
    for content_id, start, count in segments:
        at, stop = start, start + count
        while at < stop:
            taken = min(size - filled, stop - at)
            last = pieces[-1] if pieces else None
            if last and last[0] == content_id and last[1] + last[2] == at:
                pieces[-1] = (content_id, last[1], last[2] + taken)
            else:
                pieces.append((content_id, at, taken))
            at, filled = at + taken, filled + taken
            if filled == size:
                blocks.append(tuple(pieces))
                pieces, filled = [], 0
    return blocks


class Wire:
    """The engine's link without sockets: events out, messages in."""

    is_listening = True

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.emit = emit
        self.messages: list[dict[str, Any]] = []

    def commands(self) -> list[dict[str, Any]]:
        messages, self.messages = self.messages, []
        return messages

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
