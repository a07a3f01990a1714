# SPDX-License-Identifier: Apache-2.0
"""An executor for vLLM without worker and weights: modelled time, scripted tokens.

Written against vLLM 0.30 to 0.33. Methods take ``*args`` where the releases differ.

Which token comes next needs no counter of our own, so preemption, resumption, chunking,
prefix-cache hits, asynchronous scheduling and tokens the scheduler throws away cannot lead
it astray: a step that computes positions up to ``p`` (exclusive) yields output token
``p - num_prompt_tokens``, provided that ``p`` reaches all tokens that exist by then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, KVConnectorOutput, ModelRunnerOutput

from mars.core.copies import HostMemory
from mars.engine.emulated.device import DEVICE, StepFuture
from mars.engine.emulated.model_dir import VOCABULARY_SIZE
from mars.engine.emulated.offload import OffloadWorker
from mars.engine.emulated.reply import reply_tokens
from mars.engine.emulated.scripts import ScriptBook
from mars.profiles import Profile, load_profile

logger = init_logger("vllm.mars.emulated")

_RPC_ANSWERS: Mapping[str, Any] = {
    "get_supported_tasks": ("generate",),
    "supports_draft_weight_updates": False,
    "add_lora": False,
    "remove_lora": False,
    "pin_lora": False,
    "list_loras": set[int](),
}
"""What a worker would say to a remote call; every other one is answered with None."""


class Script(NamedTuple):
    """One request: how long its prompt is and what it is answered with."""

    num_prompt_tokens: int
    tokens: Sequence[int]


class ScheduledTokens(NamedTuple):
    """One request in one step; ``num_known_tokens`` exist (or are on their way) by then."""

    request_id: str
    num_computed_tokens: int
    num_scheduled_tokens: int
    num_known_tokens: int


class EmulatedExecutor(Executor):
    """vLLM's executor interface on :data:`mars.engine.emulated.device.DEVICE`.

    The profile comes from ``--additional-config``, as ``{"mars": {"profile": NAME,
    "time_scale": 1.0}}``.
    """

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As a GPU does: the next step may be scheduled while one runs."""
        return True

    def _init_executor(self) -> None:
        if self.parallel_config.world_size != 1:
            raise ValueError(
                "the emulated engine is one accelerator: leave --tensor-parallel-size and "
                "--pipeline-parallel-size at 1"
            )
        if self.speculative_config is not None:
            raise ValueError("the emulated engine drafts no tokens: drop --speculative-config")
        self._target, time_scale = _profile(self.vllm_config.additional_config)
        self._book = _book(self.vllm_config.additional_config)
        self._scripts: dict[str, Script] = {}
        self._computed: deque[tuple[float, ModelRunnerOutput]] = deque()
        self._eos_token_id = _eos_token_id(self.model_config)
        # Loaded now: on the first request it would hold up the engine for a second.
        self._tokenizer: Any = cached_tokenizer_from_config(self.model_config)
        self._letters = [self._tokenizer.decode([token]) for token in range(VOCABULARY_SIZE)]
        self._offload = self._offloading()
        DEVICE.reset(self._target.cost, time_scale)
        logger.info("emulating %s, time x %g", self._target.name, time_scale)

    # --- start-up --------------------------------------------------------------------
    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """One full-attention cache for each layer whose KV grows with the context."""
        shape = self._target.architecture
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=shape.num_kv_heads,
            head_size=shape.head_size,
            dtype=torch.bfloat16 if shape.kv_element_bytes == 2 else torch.uint8,
        )
        return [{f"layers.{index}.attention": spec for index in range(shape.num_full_layers)}]

    def determine_available_memory(self) -> list[int]:
        """The profile's KV pool, and one block more: vLLM keeps one as its null block."""
        num_tokens = self._target.kv_tokens + self.cache_config.block_size
        return [num_tokens * self._target.kv_bytes_per_token]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Any will do."""
        return [["LBNHC", "LBHNC"]]

    def set_kv_cache_layout(self, *args: Any, **kwargs: Any) -> None:
        """There is no cache to lay out."""

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> None:
        """There is no cache to make."""

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to compile."""

    def collective_rpc(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        **_: Any,
    ) -> Any:
        """Answer as one worker would that agrees with everything.

        ``mars_device`` gets the counters of the device. In vLLM's development mode
        (``VLLM_SERVER_DEV_MODE=1``) ``POST /collective_rpc`` asks for it over HTTP.
        """
        name = method if isinstance(method, str) else ""
        answers = [DEVICE.counters() if name == "mars_device" else _RPC_ANSWERS.get(name)]
        return _finished(answers) if non_block else answers

    def check_health(self) -> None:
        """Nothing can fail."""

    def shutdown(self) -> None:
        """There is no worker to stop."""

    # --- steps -----------------------------------------------------------------------
    def execute_model(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> Any:
        """Start a step; its tokens are collected by :meth:`sample_tokens`."""
        now = time.monotonic()
        for request_id in scheduler_output.finished_req_ids:
            self._scripts.pop(request_id, None)
        for request in scheduler_output.scheduled_new_reqs:
            if request.req_id not in self._scripts:
                self._scripts[request.req_id] = self._script(request)
        start = self._start_copies(scheduler_output, now)
        sampled: ModelRunnerOutput | None = None
        if scheduler_output.total_num_scheduled_tokens:
            entries = list(self._scheduled(scheduler_output))
            deadline = DEVICE.submit(
                [(entry.num_computed_tokens, entry.num_scheduled_tokens) for entry in entries],
                max(now, start),
                is_continuation=bool(scheduler_output.scheduled_cached_reqs.req_ids),
            )
            sampled = self._sample(entries)
            self._computed.append((deadline, sampled))
        copied = self._end_copies(scheduler_output, max(now, start))
        output: ModelRunnerOutput | None = None
        if sampled is not None:
            sampled.kv_connector_output = copied
        elif copied is not None:
            output = ModelRunnerOutput(req_ids=[], req_id_to_index={}, kv_connector_output=copied)
        else:
            output = EMPTY_MODEL_RUNNER_OUTPUT
        return _finished(output) if non_block else output

    def sample_tokens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, grammar_output: Any, non_block: bool = False
    ) -> Any:
        """The tokens of the oldest step not collected yet, when its time has passed."""
        deadline, output = self._computed.popleft()
        future = StepFuture(DEVICE, deadline, output)
        return future if non_block else future.result()

    def _offloading(self) -> OffloadWorker | None:
        config = self.vllm_config.kv_transfer_config
        if config is None or config.kv_connector is None:
            return None
        if config.kv_connector != "OffloadingConnector":
            raise ValueError(
                f"the emulated engine copies no KV for {config.kv_connector}: use vLLM's native "
                "offloading (--kv-offloading-size GIB), or drop --kv-transfer-config"
            )
        size = self._target.kv_bytes_per_token * self.cache_config.block_size
        return OffloadWorker(HostMemory(self._target.host_link, size, 1))

    def _start_copies(self, output: SchedulerOutput, now: float) -> float:
        """Copies that precede the step; when those are done that it waits for."""
        metadata: Any = output.kv_connector_metadata
        if self._offload is None or metadata is None:
            return 0.0
        return self._offload.before(metadata, now, DEVICE.free_at)

    def _end_copies(self, output: SchedulerOutput, now: float) -> KVConnectorOutput | None:
        """Copies that follow the step; what is done by now."""
        metadata: Any = output.kv_connector_metadata
        if self._offload is None or metadata is None:
            return None
        return self._offload.after(metadata, now, DEVICE.free_at)

    def execute_dummy_batch(self) -> None:
        """Data parallelism asks for it; it takes no time."""

    def _scheduled(self, output: SchedulerOutput) -> Iterator[ScheduledTokens]:
        """Every request of a step with what it had before."""
        num_scheduled = output.num_scheduled_tokens
        for request in output.scheduled_new_reqs:
            request_id = request.req_id
            # Model runner V2 has resumed requests here, their output in prefill_token_ids.
            known = len(getattr(request, "prefill_token_ids", None) or ())
            yield ScheduledTokens(
                request_id,
                request.num_computed_tokens,
                num_scheduled[request_id],
                max(known, self._scripts[request_id].num_prompt_tokens),
            )
        cached = output.scheduled_cached_reqs
        for request_id, computed, num_output in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            known = self._scripts[request_id].num_prompt_tokens + num_output
            yield ScheduledTokens(request_id, computed, num_scheduled[request_id], known)

    def _script(self, request: NewRequestData) -> Script:
        prompt = request.prompt_token_ids or []
        sampling = request.sampling_params
        max_tokens = sampling.max_tokens if sampling and sampling.max_tokens else 1
        script = (sampling.extra_args if sampling else None) or {}
        if self._book is not None and not any(name.startswith("mars_") for name in script):
            # Token by token: thirty times faster than the tokenizer, and marks are ASCII.
            text = "".join(map(self._letters.__getitem__, prompt))
            is_forced = _demands_call(sampling)
            script = {"mars_reply_text": self._book.reply(text, is_forced=is_forced)}
        return Script(len(prompt), reply_tokens(script, prompt, max_tokens, self._encode))

    def _encode(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _sample(self, entries: Sequence[ScheduledTokens]) -> ModelRunnerOutput:
        request_ids = [entry.request_id for entry in entries]
        return ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(request_ids)},
            sampled_token_ids=[self._next_tokens(entry) for entry in entries],
        )

    def _next_tokens(self, entry: ScheduledTokens) -> list[int]:
        """One token, or none while the prompt (or what was lost of it) is still computed."""
        end = entry.num_computed_tokens + entry.num_scheduled_tokens
        script = self._scripts[entry.request_id]
        if end < entry.num_known_tokens:
            return []
        index = end - script.num_prompt_tokens
        return [script.tokens[index] if index < len(script.tokens) else self._eos_token_id]


def _profile(additional_config: Any) -> tuple[Profile, float]:
    """Profile and time scale from ``--additional-config``."""
    ours = additional_config.get("mars", {}) if isinstance(additional_config, dict) else {}
    spec = ours.get("profile")
    if not spec:
        raise ValueError(
            'the emulated engine needs a profile: --additional-config \'{"mars": {"profile": '
            '"h100-qwen3-coder-30b"}}\''
        )
    time_scale = float(ours.get("time_scale", 1.0))
    if time_scale <= 0:
        raise ValueError(f"time_scale = {time_scale:g}; must be > 0 (1: as fast as the profile)")
    return load_profile(spec), time_scale


def _demands_call(sampling: Any) -> bool:
    """Whether the grammar of a request has room for tool calls only.

    Strict tools give it a grammar, too; text may go before the tags that trigger that one.
    """
    outputs = getattr(sampling, "structured_outputs", None)
    tag = getattr(outputs, "structural_tag", None)
    return bool(tag) and "triggered_tags" not in str(tag)


def _book(additional_config: Any) -> ScriptBook | None:
    """Replies for unmodified agents, where ``--additional-config`` names a file of them."""
    ours = additional_config.get("mars", {}) if isinstance(additional_config, dict) else {}
    path = ours.get("scripts")
    return ScriptBook.read(path) if path else None


def _eos_token_id(model_config: Any) -> int:
    value = model_config.hf_text_config.eos_token_id
    return value[0] if isinstance(value, list) else value


def _finished(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
