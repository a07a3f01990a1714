# SPDX-License-Identifier: Apache-2.0
"""Engines that cache, cut or hold less than usual, or are spread over GPUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import MambaSpec, SlidingWindowSpec

from tests.engine.vllm.feature_engine import (
    ASYNC,
    BLOCK,
    FULL,
    POLICIES,
    SMALL,
    FeatureEngine,
    crowd,
    lengths,
    same_as_stock,
)

pytestmark = pytest.mark.vllm

DECIDING = POLICIES[1:]


# --- less than usual ---------------------------------------------------------------------
def uncached(config: VllmConfig) -> None:
    config.cache_config.enable_prefix_caching = False


def unchunked(config: VllmConfig) -> None:
    config.scheduler_config.enable_chunked_prefill = False


ROOMY = dataclasses.replace(SMALL, max_num_batched_tokens=1024)
SLIDING = SlidingWindowSpec(
    block_size=BLOCK, num_kv_heads=4, head_size=16, dtype=torch.bfloat16, sliding_window=64
)
HYBRID = (FULL, SLIDING)


def test_without_prefix_caching_fcfs_is_stock_vllm(tmp_path: Path) -> None:
    same_as_stock(tmp_path, uncached)


@pytest.mark.parametrize("policy", DECIDING)
def test_without_prefix_caching_nothing_is_kept(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, uncached)
    assert crowd(engine) == lengths(engine)
    assert engine.count()["kv_retained"] == 0
    assert {e.num_cached_tokens for e in engine.of_kind("turn_started")} == {0}


def test_without_chunked_prefill_fcfs_is_stock_vllm(tmp_path: Path) -> None:
    same_as_stock(tmp_path, unchunked, shape=ROOMY)


@pytest.mark.parametrize("policy", DECIDING)
def test_without_chunked_prefill_no_prompt_is_cut(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, unchunked, shape=ROOMY)
    assert crowd(engine) == lengths(engine)
    pieces = sum(num > 1 for step in engine.steps for num in step.values())
    assert pieces <= 24 + engine.count()["turn_preempted"]
    assert engine.count()["chunk_shrunk"] == 0


def test_with_several_kv_cache_groups_fcfs_is_stock_vllm(tmp_path: Path) -> None:
    same_as_stock(tmp_path, lambda _: None, specs=HYBRID)


@pytest.mark.parametrize("policy", DECIDING)
def test_with_several_kv_cache_groups_the_order_is_ours_alone(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, specs=HYBRID)
    assert crowd(engine) == lengths(engine)
    kinds = engine.count()
    assert kinds["kv_retained"] == kinds["chunk_shrunk"] == kinds["kv_evicted"] == 0
    assert any("2 KV cache groups" in reason for reason in engine.plugin._can.reasons)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_group_of_sliding_windows_has_everything(tmp_path: Path, policy: str) -> None:
    engine = FeatureEngine(tmp_path, policy, specs=(SLIDING,))
    assert crowd(engine) == lengths(engine)
    assert engine.plugin._can.reasons == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_keeps_states_runs_in_our_order(tmp_path: Path, policy: str) -> None:
    states = MambaSpec(block_size=BLOCK, shapes=((4, 16),), dtypes=(torch.bfloat16,))
    engine = FeatureEngine(tmp_path, policy, uncached, specs=(states,))
    assert crowd(engine) == lengths(engine)
    assert any("states" in reason for reason in engine.plugin._can.reasons)


# --- parallelism -------------------------------------------------------------------------
def two_stages(config: VllmConfig) -> None:
    config.parallel_config.pipeline_parallel_size = 2


def test_pipeline_stages_without_async_scheduling_step_as_stock_vllm(tmp_path: Path) -> None:
    same_as_stock(tmp_path, two_stages, num_in_flight=2)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_token_is_asked_for_twice_with_pipeline_stages(
    tmp_path: Path, policy: str, is_async: bool
) -> None:
    engine = FeatureEngine(
        tmp_path, policy, two_stages, shape=ASYNC if is_async else SMALL, num_in_flight=2
    )
    assert crowd(engine) == lengths(engine)


def test_tensor_parallelism_is_no_concern_of_the_scheduler(tmp_path: Path) -> None:
    def four_gpus(config: VllmConfig) -> None:
        config.parallel_config.tensor_parallel_size = 4

    same_as_stock(tmp_path, four_gpus)
