# SPDX-License-Identifier: Apache-2.0
"""A KV connector that loads late, keeps blocks of ended turns, and sometimes fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, SupportsHMA
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from tests.engine.vllm.connectors import NEEDS_CONNECTORS
from tests.engine.vllm.feature_engine import (
    ASYNC,
    BLOCK,
    POLICIES,
    SMALL,
    FeatureEngine,
    crowd,
    lengths,
)

pytestmark = NEEDS_CONNECTORS

LATENCY = 3
"""Steps that a load or a send takes."""


class FarStore(KVConnectorBase_V1, SupportsHMA):
    """Has every prompt's first blocks somewhere else; keeps those of ended turns until sent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loading: dict[str, int] = {}
        self.sending: dict[str, int] = {}
        self.num_loaded = 0
        self.num_sent = 0
        self.fails: set[str] = set()
        self.lost: set[str] = set()

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        there = (request.num_tokens - 1) // BLOCK // 2 * BLOCK
        missing = max(0, there - num_computed_tokens)
        is_there = not request.num_preemptions and request.request_id not in self.lost
        return (missing, missing > 0) if is_there else (0, False)

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external: int) -> None:
        if num_external:
            self.loading[request.request_id] = LATENCY

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:
        self.sending[request.request_id] = LATENCY
        return True, None

    def request_finished_all_groups(self, request: Request, block_ids: Any) -> tuple[bool, None]:
        return self.request_finished(request, [])

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def says(self, _: SchedulerOutput) -> KVConnectorOutput:
        """What the workers report after a step."""
        arrived, sent = _passed(self.loading), _passed(self.sending)
        self.num_loaded += len(arrived)
        self.num_sent += len(sent)
        failed = arrived & self.fails
        self.lost |= failed
        return KVConnectorOutput(
            finished_recving=arrived or None,
            finished_sending=sent or None,
            **({"failed_recving": failed} if failed else {}),
        )

    # The worker's half, which nothing here executes.
    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        raise NotImplementedError

    def wait_for_layer_load(self, layer_name: str) -> None:
        raise NotImplementedError

    def save_kv_layer(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def wait_for_save(self) -> None:
        raise NotImplementedError


def _passed(pending: dict[str, int]) -> set[str]:
    for name in pending:
        pending[name] -= 1
    done = {name for name, left in pending.items() if left <= 0}
    for name in done:
        del pending[name]
    return done


def connected(config: VllmConfig) -> None:
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="FarStore", kv_role="kv_both", kv_load_failure_policy="recompute"
    )


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry = KVConnectorFactory._registry
    registry["FarStore"] = lambda: FarStore
    yield
    del registry["FarStore"]


def engine_with_store(
    directory: Path, policy: str | None, *, is_async: bool = False
) -> tuple[FeatureEngine, FarStore]:
    shape = ASYNC if is_async else SMALL
    engine = FeatureEngine(directory, policy, connected, shape=shape, num_in_flight=1 + is_async)
    store: Any = engine.scheduler.connector
    engine.connector_says = store.says
    return engine, store


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_late_loads_and_late_frees_under_pressure(
    tmp_path: Path, policy: str, is_async: bool
) -> None:
    engine, store = engine_with_store(tmp_path, policy, is_async=is_async)
    wanted = crowd(engine)
    assert wanted == lengths(engine)
    assert store.num_loaded > 0
    assert store.num_sent == len(wanted)
    assert not engine.scheduler.requests
    assert engine.count()["turn_finished"] == len(wanted)


@pytest.mark.parametrize("is_async", [False, True])
def test_fcfs_beside_a_connector_is_stock_vllm(tmp_path: Path, is_async: bool) -> None:
    engines = [engine_with_store(tmp_path, p, is_async=is_async)[0] for p in (None, "fcfs")]
    for engine in engines:
        crowd(engine)
    assert engines[0].steps == engines[1].steps


def test_a_turn_ends_when_its_reply_does_not_when_its_kv_is_sent(tmp_path: Path) -> None:
    engine, store = engine_with_store(tmp_path, "continuum")
    engine.add(engine.request("a", 100, 4, session="s"))
    while "a" not in engine.reasons:
        engine.step()
    assert store.sending
    assert "a" in engine.scheduler.requests
    assert [e.finish_reason for e in engine.of_kind("turn_finished")] == ["length"]
    assert [e.session_id for e in engine.of_kind("kv_retained")] == ["s"]
    # The next turn comes before the last block is sent, and finds its KV.
    engine.add(engine.request("b", 150, 4, session="s"))
    engine.drain()
    assert engine.of_kind("turn_started")[-1].num_cached_tokens >= 96
    assert [e.reason for e in engine.of_kind("kv_released")] == ["returned"]


def test_an_abort_while_loading_frees_what_the_load_may_still_write_to_afterwards(
    tmp_path: Path,
) -> None:
    engine, store = engine_with_store(tmp_path, "mars")
    free = engine.plugin._pool.get_num_free_blocks()
    engine.add(engine.request("a", 200, 4, session="s"))
    engine.step()
    assert engine.scheduler.requests["a"].status == RequestStatus.WAITING_FOR_REMOTE_KVS
    engine.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    engine.check()
    assert [e.finish_reason for e in engine.of_kind("turn_finished")] == ["abort"]
    store.sending.clear()
    engine.drain()
    assert engine.plugin._pool.get_num_free_blocks() == free


@pytest.mark.parametrize("policy", POLICIES)
def test_what_could_not_be_loaded_is_computed(tmp_path: Path, policy: str) -> None:
    engine, store = engine_with_store(tmp_path, policy)
    if "failed_recving" not in KVConnectorOutput.__dataclass_fields__:
        pytest.skip("this vLLM reports failed loads by block")
    store.fails = {f"r{index}" for index in range(0, 24, 3)}
    assert crowd(engine) == lengths(engine)
    assert store.lost


def test_retained_kv_gives_way_to_a_load(tmp_path: Path) -> None:
    engine, _ = engine_with_store(tmp_path, "continuum")
    engine.add(engine.request("a", 600, 2, session="s"))
    engine.drain()
    assert engine.plugin._retained.num_blocks == 600 // BLOCK
    engine.add(engine.request("b", 700, 2, session="t", first=3000))
    engine.drain()
    assert [e.reason for e in engine.of_kind("kv_released")] == ["pressure"]
