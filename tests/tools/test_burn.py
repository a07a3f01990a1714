# SPDX-License-Identifier: Apache-2.0
"""The stand-in for a recorded tool uses what it is told to, and nothing it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mars.tools import burn


def run(*arguments: str) -> tuple[int, float, float, int]:
    """Exit code, wall seconds, CPU seconds and resident peak (bytes) of one run."""
    process = subprocess.Popen([sys.executable, "-I", "-S", burn.__file__, *arguments])
    started = time.monotonic()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    return process.returncode, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


@pytest.mark.parametrize(("cpu_s", "wall_s"), [(0.3, 0.8), (0.5, 0.1), (0.0, 0.3), (0.1, 0.1)])
def test_cpu_seconds_are_exact_and_wall_seconds_at_least(cpu_s: float, wall_s: float) -> None:
    code, took_s, used_s, _ = run("--cpu-s", str(cpu_s), "--wall-s", str(wall_s))
    assert code == 0
    assert used_s == pytest.approx(max(cpu_s, 0.02), abs=0.03)
    assert took_s >= max(cpu_s, wall_s) - 0.03


def test_memory_is_touched_not_just_asked_for() -> None:
    held = burn.touched(3 * 4096 + 1)
    assert len(held) == 3 * 4096 + 1
    assert [held[i] for i in (0, 4096, 8192, 12288)] == [1, 1, 1, 1]
    _, _, _, peak_bytes = run("--bytes", str(512 << 20))
    assert peak_bytes > 512 << 20


def test_exit_code_can_be_replayed() -> None:
    assert run("--exit-code", "3")[0] == 3


def test_an_unknown_option_is_named() -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", burn.__file__, "--cpu", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "--cpu;" in ran.stderr
    assert "--cpu-s" in ran.stderr


def test_it_imports_nothing_that_takes_time() -> None:
    ran = [
        subprocess.run(
            [sys.executable, "-I", "-S", *arguments], capture_output=True, text=True, check=True
        )
        for arguments in (
            ("-X", "importtime", burn.__file__),
            ("-X", "importtime", "-c", "import time"),
        )
    ]
    loaded, bare = ({line.split("|")[-1].strip() for line in r.stderr.splitlines()} for r in ran)
    assert loaded <= bare
