# SPDX-License-Identifier: Apache-2.0
"""A disk that is nearly full: the floor lies above what is free, so that every disk is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from mars.tools.process import ToolRunner
from tests.tools.conftest import limits, shell

ABOVE = 2**40
FILL = "dd if=/dev/zero of=big bs=1M count=64 conv=fsync status=none; sleep 60"


def floor_of(folder: Path) -> int:
    return shutil.disk_usage(folder).free + ABOVE


async def test_who_fills_the_disk_is_ended_in_words(runner: ToolRunner, tmp_path: Path) -> None:
    bounds = limits(disk_floor_bytes=floor_of(tmp_path))
    result = await runner.run(shell(FILL, cwd=str(tmp_path), limits=bounds))
    assert result.exit_code < 0
    assert b"the disk is nearly full" in result.stderr
    assert len(result.notices) == 1


async def test_who_only_runs_meanwhile_is_left_alone(runner: ToolRunner, tmp_path: Path) -> None:
    bounds = limits(disk_floor_bytes=floor_of(tmp_path))
    result = await runner.run(shell("sleep 0.6; echo ok", cwd=str(tmp_path), limits=bounds))
    assert (result.exit_code, result.stdout) == (0, b"ok\n")


async def test_a_disk_with_room_bothers_nobody(runner: ToolRunner, tmp_path: Path) -> None:
    fill = FILL.replace("sleep 60", "sleep 0.6")
    bounds = limits(disk_floor_bytes=1)
    result = await runner.run(shell(fill, cwd=str(tmp_path), limits=bounds))
    assert result.exit_code == 0


def test_the_shell_of_an_agent_keeps_the_floor_too(tmp_path: Path) -> None:
    setting = f"tools.disk_floor_bytes={floor_of(tmp_path)}"
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "exec", "--set", setting, "--", "sh", "-c", FILL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the disk is nearly full" in ran.stderr
    assert ran.returncode == 137
