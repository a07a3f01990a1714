# SPDX-License-Identifier: Apache-2.0
"""The control plane dies, its disk fills, its log is moved, its clock jumps."""

from __future__ import annotations

from pathlib import Path

from mars.testing import faults_control


async def test_killed_under_live_agents(folder: Path) -> None:
    out = await faults_control.gateway_killed(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw["200, whole"] == 8 * 8 + 3
    assert out.clients_saw.keys() <= {"200, whole", "200, broken off", "no connection"}
    assert out.noted["active_restored"] == out.noted["active_before"] == 8
    assert out.noted["held_restored"] == 1


async def test_the_wall_clock_decides_nothing(folder: Path) -> None:
    out = await faults_control.clock_jumps(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw["200, whole"] == 3


async def test_a_full_disk_costs_log_lines_only_and_the_log_tells_how_many(folder: Path) -> None:
    out = await faults_control.full_disk(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 22}
    assert out.noted["told_in_the_log"] == out.noted["told_in_the_state"] > 0


async def test_a_rotated_log_still_tells_who_is_active(folder: Path) -> None:
    out = await faults_control.log_rotated(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 10}
    assert out.noted["turns_of_each"] == [2]
