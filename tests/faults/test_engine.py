# SPDX-License-Identifier: Apache-2.0
"""The engine dies, stalls, and comes back: real processes, real sockets."""

from __future__ import annotations

from pathlib import Path

from mars.testing import faults_engine


async def test_killed_in_the_middle_of_turns(folder: Path) -> None:
    out = await faults_engine.engine_killed_in_turns(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw["200, whole"] == 9
    assert "503" not in out.clients_saw  # a turn stands still until the engine is back
    assert out.noted == {
        "engine_restarts": 1,
        "alarms_while_down": 1,
        "alarms_after": 0,
        "generations": [0],
    }


async def test_killed_between_turns_is_not_seen_by_clients(folder: Path) -> None:
    out = await faults_engine.engine_killed_between_turns(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 8}
    assert out.noted == {"engine_restarts": 1, "turns_of_each": [2]}


async def test_stalled_load_is_unknown_not_zero_and_nobody_is_lost(folder: Path) -> None:
    out = await faults_engine.engine_stopped(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 5}
    assert out.noted["states"] == [2, None]
    assert "engine telemetry is stale" in out.noted["alarm"]
    assert out.noted["alarms_after"] == 0


async def test_a_stalled_gateway_gets_what_its_queues_dropped_from_the_ring(folder: Path) -> None:
    out = await faults_engine.gateway_stopped_in_a_burst(folder)
    assert out.is_nothing_lost, out.lost
    assert (out.noted["came"], out.noted["told_lost"]) == (40_001, 0)


async def test_one_of_two_ranks_killed(folder: Path) -> None:
    out = await faults_engine.ranks(folder)
    assert out.is_nothing_lost, out.lost
    assert out.noted["kv_blocks"] == 2000
    assert "(rank 1)" in out.noted["alarm"]
    assert out.noted["sources"] == ["engine", "engine.1"]
