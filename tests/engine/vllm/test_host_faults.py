# SPDX-License-Identifier: Apache-2.0
"""Host memory when copies fail or crawl, when it is full, and when turns are aborted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from mars.bench.result import Result
from mars.core.copies import HostLink, HostMemory
from mars.engine.vllm.integrity import check_integrity
from mars.engine.vllm.virtual import VirtualShape, VirtualTimeScheduler
from mars.sim.run import Machine, SimConfig, simulate
from tests.engine.vllm.connectors import NEEDS_CONNECTORS
from tests.engine.vllm.kv_contents import CheckedEngine
from tests.sim.workloads import Shape

pytestmark = NEEDS_CONNECTORS

THRASH = Shape(3, num_sessions=16, rate=8.0, growth_tokens=5000, num_turns=5)
POOL = 24_000
POLICIES = ("fcfs", "continuum-dynamic", "infercept", "mars")


class AbortingEngine(CheckedEngine):
    """The client of every third turn that loads goes away meanwhile."""

    num_aborted = 0
    _num_seen = 0

    def plan(self, now: float) -> float | None:
        for request in list(self.scheduler.requests.values()):
            is_loading = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            if is_loading and self._in_flight:  # whose result will tell the driver
                self._num_seen += 1
                if self._num_seen % 3 == 0:
                    self.num_aborted += 1
                    name = request.request_id
                    self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
                    self.gone.append(name)
        return super().plan(now)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gone: list[str] = []

    def complete(self, now: float) -> list[str]:
        gone, self.gone = self.gone, []
        return [*super().complete(now), *gone]


def run(
    policy: str,
    directory: Path,
    *,
    pool: int = POOL,
    host_tokens: int = 8 * POOL,
    slower: float = 1.0,
    kind: type[CheckedEngine] = CheckedEngine,
    fails_every: int = 0,
) -> tuple[Result, Any]:
    made: list[Any] = []

    def engine(config: SimConfig, machine: Machine, emit: Any) -> Any:
        assert machine.host is not None
        link = HostLink(machine.host.link.bytes_per_s / slower)
        host = HostMemory(link, machine.host.bytes_per_block, machine.host.num_blocks)
        made.append(
            kind(
                VirtualShape(**dataclasses.asdict(machine.shape)),
                machine.cost,
                directory,
                {"policy": config.policy, "profile": config.machine},
                emit,
                host,
                fails_every=fails_every,
            )
        )
        return made[0]

    config = SimConfig(policy=policy, kv_tokens=pool, host_kv_tokens=host_tokens, is_async=True)
    return simulate(THRASH.trace(), config, make_engine=engine), made[0]


def assert_sound(result: Result, engine: Any) -> None:
    """No wrong KV was read, everybody ended, and no block is lost."""
    assert engine.wrong == []
    assert engine.num_reads > 1000
    assert all(s.error is None and s.sct_s is not None for s in result.sessions)
    scheduler = engine.scheduler
    assert isinstance(scheduler, VirtualTimeScheduler)
    check_integrity(scheduler, co=scheduler._co, retained=scheduler._retained, values=None)
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert not scheduler._co.loading


@pytest.mark.parametrize("policy", POLICIES)
def test_no_wrong_kv_is_read(policy: str, tmp_path: Path) -> None:
    result, engine = run(policy, tmp_path)
    assert_sound(result, engine)
    assert engine.num_loads > 3


@pytest.mark.parametrize("policy", ["fcfs", "mars"])
def test_a_failed_load_is_computed_again(policy: str, tmp_path: Path) -> None:
    # A prompt of more than half the pool whose load failed waits for ever, in stock vLLM 0.32
    # as well: its own reservation stays.
    result, engine = run(policy, tmp_path, pool=60_000, fails_every=3)
    assert engine.num_failed > 0
    assert_sound(result, engine)


@pytest.mark.parametrize("policy", ["fcfs", "mars"])
def test_copies_a_thousand_times_slower_only_take_longer(policy: str, tmp_path: Path) -> None:
    result, engine = run(policy, tmp_path, slower=1000.0)
    assert engine.num_loads > 0
    assert_sound(result, engine)


@pytest.mark.parametrize("policy", ["fcfs", "mars"])
@pytest.mark.parametrize("host_tokens", [2_000, POOL])
def test_host_memory_that_is_full(policy: str, host_tokens: int, tmp_path: Path) -> None:
    assert_sound(*run(policy, tmp_path, host_tokens=host_tokens))


@pytest.mark.parametrize("policy", ["fcfs", "mars"])
def test_turns_aborted_while_their_copies_are_under_way(policy: str, tmp_path: Path) -> None:
    result, engine = run(policy, tmp_path, kind=AbortingEngine)
    assert engine.num_aborted > 0
    assert_sound(result, engine)
