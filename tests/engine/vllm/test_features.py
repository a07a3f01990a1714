# SPDX-License-Identifier: Apache-2.0
"""What vLLM can do beside plain completions, under the plug-in, on its real scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import LoRAConfig, SpeculativeConfig, VllmConfig
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.v1.core.kv_cache_utils import get_block_hash, maybe_convert_block_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from tests.engine.vllm.feature_engine import (
    ASYNC,
    BLOCK,
    BOUNDED,
    EVERY_SEAM,
    POLICIES,
    SAMPLED,
    SMALL,
    FeatureEngine,
    crowd,
    lengths,
    same_as_stock,
)

pytestmark = pytest.mark.vllm

DECIDING = POLICIES[1:]


# --- speculative decoding ----------------------------------------------------------------
def drafts_of_three(config: VllmConfig) -> None:
    config.speculative_config = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=3,
        prompt_lookup_max=3,
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_drafts_change_no_step_of_fcfs(tmp_path: Path, is_async: bool) -> None:
    shape = ASYNC if is_async else SMALL
    same_as_stock(tmp_path, drafts_of_three, shape=shape, num_in_flight=1 + is_async)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", DECIDING)
def test_every_turn_has_its_reply_with_drafts(tmp_path: Path, policy: str, is_async: bool) -> None:
    shape = ASYNC if is_async else SMALL
    engine = FeatureEngine(
        tmp_path, policy, drafts_of_three, shape=shape, num_in_flight=1 + is_async
    )
    assert crowd(engine) == lengths(engine)
    assert any(4 in step.values() for step in engine.steps)


# --- LoRA --------------------------------------------------------------------------------
def two_adapters_at_once(config: VllmConfig) -> None:
    config.lora_config = LoRAConfig(max_loras=2, max_cpu_loras=4, max_lora_rank=8)


def adapter(index: int) -> LoRARequest:
    number = 1 + index % 4
    return LoRARequest(lora_name=f"a{number}", lora_int_id=number, lora_path="/nowhere")


def test_a_prefill_without_room_still_counts_its_adapter(tmp_path: Path) -> None:
    # Kept waiting in the running list, it would be no adapter in vLLM's eyes, which would
    # start a third one and fail on its own assertion when the prefill goes on.
    engine = FeatureEngine(tmp_path, EVERY_SEAM, two_adapters_at_once)
    for index in range(3):
        engine.add(engine.request(f"d{index}", 10, 60, lora_request=adapter(1), first=1000 * index))
    engine.step()
    engine.add(engine.request("long", 800, 3, lora_request=adapter(0), first=4000))
    engine.step()
    engine.add(engine.request("big", 320, 8, lora_request=adapter(1), first=5000))
    for _ in range(4):
        engine.step()
    assert engine.steps[-1]["long"] == 100
    engine.add(engine.request("new", 10, 40, lora_request=adapter(2), first=6000))
    while engine.step():
        running = [request.lora_request for request in engine.scheduler.running]
        assert len({one.lora_int_id for one in running if one}) <= 2
    assert lengths(engine) == {"d0": 60, "d1": 60, "d2": 60, "long": 3, "big": 8, "new": 40}


@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_adapters_run_than_there_is_room_for(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, two_adapters_at_once)
    wanted = crowd(engine, num=48, lora_request=adapter)
    assert wanted == lengths(engine)
    for step in engine.steps:
        assert len({1 + int(name[1:]) % 4 for name in step}) <= 2


# --- streaming input ---------------------------------------------------------------------
def test_a_streamed_prompt_is_one_turn_that_stops_and_keeps_its_kv(tmp_path: Path) -> None:
    engine = FeatureEngine(tmp_path, "continuum")
    engine.add(engine.request("a", 100, 5, session="s", resumable=True))
    for _ in range(8):
        engine.step()
    assert engine.scheduler.requests["a"].status == RequestStatus.WAITING_FOR_STREAMING_REQ
    # The session waits for its client; others are served meanwhile.
    engine.add(engine.request("b", 60, 4, first=5000))
    for _ in range(8):
        engine.step()
    assert engine.reasons["b"] == "length"
    engine.add(engine.request("a", 50, 5, session="s", first=2000, resumable=True))
    for _ in range(8):
        engine.step()
    assert len(engine.tokens["a"]) == 10
    assert "s" not in [e.session_id for e in engine.of_kind("turn_finished")]
    engine.add(engine.request("a", 1, 1, session="s", resumable=False))
    engine.drain()
    assert [e.finish_reason for e in engine.of_kind("turn_finished")] == ["length", "stop"]
    assert [e.session_id for e in engine.of_kind("kv_retained")] == ["s"]


@pytest.mark.parametrize("policy", POLICIES)
def test_streamed_and_whole_prompts_share_the_memory(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy)
    for index in range(3):
        engine.add(engine.request(f"in{index}", 90, 4, session=f"in{index}", resumable=True))
        engine.add(engine.request(f"in{index}", 70, 4, session=f"in{index}", resumable=True))
        engine.add(engine.request(f"in{index}", 1, 1, session=f"in{index}", resumable=False))
    wanted = crowd(engine)
    assert lengths(engine) == {**wanted, "in0": 8, "in1": 8, "in2": 8}


# --- stop --------------------------------------------------------------------------------
def test_a_stop_token_ends_the_turn_and_its_kv_is_kept(tmp_path: Path) -> None:
    engine = FeatureEngine(
        tmp_path, "continuum", sample=lambda r: 99 if r.num_output_tokens == 3 else SAMPLED
    )
    engine.add(engine.request("a", 100, 50, session="s", sampling={"stop_token_ids": [99]}))
    engine.drain()
    assert engine.tokens["a"] == [SAMPLED, SAMPLED, SAMPLED, 99]
    assert [e.finish_reason for e in engine.of_kind("turn_finished")] == ["stop"]
    assert [e.num_blocks for e in engine.of_kind("kv_retained")] == [100 // BLOCK]


def test_an_abort_for_a_stop_string_keeps_the_kv_and_one_of_a_client_does_not(
    tmp_path: Path,
) -> None:
    engine = FeatureEngine(tmp_path, "continuum")
    # The API server matches stop strings and aborts; it alone has the text.
    params: dict[str, Any] = {"stop": ["Observation:"], "detokenize": True}
    engine.add(engine.request("stopped", 100, 50, session="s", sampling=params))
    engine.add(engine.request("gone", 100, 50, session="t", first=3000))
    for _ in range(5):
        engine.step()
    engine.scheduler.finish_requests(["stopped", "gone"], RequestStatus.FINISHED_ABORTED)
    engine.drain()
    reasons = {e.session_id: e.finish_reason for e in engine.of_kind("turn_finished")}
    assert reasons == {"s": "stop", "t": "abort"}
    assert [e.session_id for e in engine.of_kind("kv_retained")] == ["s"]


# --- KV events ---------------------------------------------------------------------------
def publishing(config: VllmConfig) -> None:
    config.kv_events_config = KVEventsConfig(enable_kv_cache_events=True, publisher="null")


class Heard:
    """What a subscriber of vLLM's KV events knows of an engine's prefix cache."""

    def __init__(self, engine: FeatureEngine) -> None:
        self.stream: list[tuple[str, tuple[Any, ...]]] = []
        self.cached: set[Any] = set()
        engine.scheduler.kv_event_publisher.publish = self._publish  # type: ignore[method-assign]

    def _publish(self, batch: Any) -> None:
        for event in batch.events:
            hashes = tuple(getattr(event, "block_hashes", ()))
            self.stream.append((type(event).__name__, hashes))
            if isinstance(event, BlockStored):
                self.cached.update(hashes)
            elif isinstance(event, BlockRemoved):
                self.cached.difference_update(hashes)
            else:
                self.cached.clear()


def test_fcfs_publishes_the_kv_events_of_stock_vllm(tmp_path: Path) -> None:
    engines = [FeatureEngine(tmp_path, policy, publishing) for policy in (None, "fcfs")]
    heard = [Heard(engine) for engine in engines]
    for engine in engines:
        crowd(engine)
        assert engine.scheduler.reset_prefix_cache()
        crowd(engine, num=3)
    assert heard[0].stream == heard[1].stream
    assert {kind for kind, _ in heard[0].stream} == {
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    }


@pytest.mark.parametrize("policy", DECIDING)
def test_a_subscriber_knows_what_is_cached_whoever_evicts(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, publishing)
    heard = Heard(engine)
    crowd(engine)
    blocks = engine.scheduler.kv_cache_manager.block_pool.blocks
    keys = {b.block_hash for b in blocks if b.block_hash is not None}
    assert {maybe_convert_block_hash(get_block_hash(key)) for key in keys} == heard.cached
    assert "BlockRemoved" in {kind for kind, _ in heard.stream}


# --- other requests ----------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
def test_pooling_requests_end_with_their_prompt(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy)
    pooled: dict[str, Any] = {"sampling_params": None, "pooling_params": PoolingParams()}
    for index in range(12):
        engine.add(engine.request(f"e{index}", 30 + 20 * index, 1, first=1000 * index, **pooled))
        engine.add(engine.request(f"r{index}", 100, 7, session=f"s{index}", first=1000 * index))
    engine.drain()
    assert all(len(engine.tokens[f"r{i}"]) == 7 for i in range(12))
    assert all(engine.reasons[f"e{i}"] == "stop" for i in range(12))


@pytest.mark.parametrize("policy", DECIDING)
def test_prompt_logprobs_read_no_cache_and_cost_a_whole_prefill(
    tmp_path: Path, policy: str
) -> None:
    engine = FeatureEngine(tmp_path, policy)
    engine.add(engine.request("a", 200, 3, session="s"))
    engine.drain()
    engine.add(engine.request("b", 220, 3, session="s", sampling={"prompt_logprobs": 1}))
    engine.drain()
    assert [e.num_cached_tokens for e in engine.of_kind("turn_started")] == [0, 0]


def waiting_for_grammar(engine: FeatureEngine, name: str) -> Request:
    from vllm.sampling_params import StructuredOutputsParams

    params = {"structured_outputs": StructuredOutputsParams(json={"type": "object"})}
    return engine.request(name, 300, 5, session=name, first=7000, sampling=params)


@pytest.mark.parametrize("policy", [*POLICIES, BOUNDED])
def test_a_grammar_being_compiled_keeps_nobody_else_waiting(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy)
    # 800 of 944 tokens: the one with a grammar has to wait for memory, too.
    engine.add(engine.request("long", 800, 60, session="long"))
    engine.step()
    engine.add(waiting_for_grammar(engine, "json"))
    engine.add(engine.request("short", 20, 5, session="short", first=9000))
    for _ in range(30):
        engine.step()
    assert engine.scheduler.requests["json"].num_computed_tokens == 0
    assert len(engine.tokens["short"]) == 5


def test_a_grammar_that_cannot_be_compiled_fails_its_request_at_once(tmp_path: Path) -> None:
    engine = FeatureEngine(tmp_path, BOUNDED)
    engine.add(engine.request("long", 800, 60, session="long"))
    engine.step()
    request = waiting_for_grammar(engine, "json")
    assert request.structured_output_request is not None
    request.structured_output_request.grammar = ValueError("no such grammar")  # type: ignore[assignment]
    engine.add(request)
    for _ in range(3):
        engine.step()
    assert engine.reasons["json"] == "error"


# --- control -----------------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
def test_paused_engines_keep_everything_and_go_on(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, shape=ASYNC, num_in_flight=2)
    for index in range(4):
        engine.add(engine.request(f"r{index}", 100, 20, session=f"s{index}", first=1000 * index))
    for _ in range(6):
        engine.step()
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    before = len(engine.steps)
    for _ in range(5):
        engine.step()
    assert len(engine.steps) == before
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.drain()
    assert lengths(engine) == dict.fromkeys((f"r{i}" for i in range(4)), 20)


def test_client_priorities_choose_the_victim_too(tmp_path: Path) -> None:
    engine = FeatureEngine(tmp_path, "fcfs-priority")
    priorities = {"worst": 9, "best": 0, "middle": 1}
    for index, (name, priority) in enumerate(priorities.items()):
        engine.add(engine.request(name, 300, 60, priority=priority, first=1000 * index))
    engine.drain()
    preempted = [e.request_id for e in engine.of_kind("turn_preempted")]
    assert preempted
    assert preempted[0] == "worst"
    assert "best" not in preempted
