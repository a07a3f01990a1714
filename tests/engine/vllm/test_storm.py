# SPDX-License-Identifier: Apache-2.0
"""Random weather over vLLM's real scheduler; ``benchmarks/integrity.py`` is the long run."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.core.cost import CostModel
from mars.core.policy import scheduling_policies
from mars.engine.vllm.integrity import IntegrityError
from mars.engine.vllm.storm import Storm
from mars.profiles import load_profile

pytestmark = pytest.mark.vllm

COST: CostModel = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost


@pytest.mark.parametrize("policy", scheduling_policies.names())
def test_nothing_is_lost_whatever_happens(tmp_path: Path, policy: str) -> None:
    storm = Storm(policy, 11, tmp_path, is_async=True, cost=COST)
    storm.run(1000)
    assert storm.counts["turn_finished"] > 40
    assert storm.counts["turn_preempted"] + storm.counts["kv_released"] > 0
    assert storm.counts["aborted"] > 0


def test_a_waiting_turn_refused_beside_others_starts_when_they_are_gone(tmp_path: Path) -> None:
    # What the last running turn used was held for its session, so no memory came free, and
    # the refused one was not looked at again although nobody else was left.
    storm = Storm("infercept", 2, tmp_path, is_async=False, cost=COST)
    storm.run(1000)


@pytest.fixture
def storm(tmp_path: Path) -> Storm:
    storm = Storm("continuum", 5, tmp_path, is_async=False, cost=COST)
    while storm.scheduler._retained.num_blocks == 0 or not storm.scheduler.running:
        storm.turn_the_wheel()
    return storm


def test_a_reference_too_many_is_found(storm: Storm) -> None:
    scheduler: Any = storm.scheduler
    used = next(b for b in scheduler._pool.blocks if b.ref_cnt and not b.is_null)
    used.ref_cnt += 1
    with pytest.raises(IntegrityError, match=rf"block {used.block_id}: \d references, \d uses"):
        scheduler.check_integrity()


def test_a_used_block_in_the_free_list_is_found(storm: Storm) -> None:
    scheduler: Any = storm.scheduler
    used = next(b for b in scheduler._pool.blocks if b.ref_cnt and not b.is_null)
    scheduler._pool.free_block_queue.append_n([used])
    with pytest.raises(IntegrityError, match=rf"block {used.block_id}: \d references, is free"):
        scheduler.check_integrity()


def test_retained_blocks_that_the_books_do_not_know_are_found(storm: Storm) -> None:
    scheduler: Any = storm.scheduler
    scheduler._co.held.clear()
    with pytest.raises(IntegrityError, match="the books say {}"):
        scheduler.check_integrity()


def test_a_turn_without_a_request_is_found(storm: Storm) -> None:
    scheduler: Any = storm.scheduler
    del scheduler.requests[scheduler.running[0].request_id]
    with pytest.raises(IntegrityError, match="has no request"):
        scheduler.check_integrity()


def test_the_engine_checks_itself_when_told_to(storm: Storm) -> None:
    storm.scheduler._co.held.clear()
    with pytest.raises(IntegrityError, match="the books say"):
        storm.run(storm.num_steps + 3)
