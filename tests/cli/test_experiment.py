# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.test_experiment_plan import TINY
from tests.cli.conftest import Background, Run, is_gone, wait_until

Start = Callable[..., Background]


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TINY)
    return "tiny.toml"


def test_run_reports_and_goes_on_with_what_is_missing(mars: Run, scenario: str, tmp_path: Path):
    out = tmp_path / "results" / "tiny"
    first = mars("experiment", "run", scenario, "--seeds", "1", "--workers", "1")
    assert first.returncode == 0, first.stderr
    assert "tiny: 8 cells\n" in first.stderr
    assert "Times better than fcfs" in first.stdout
    cells = (out / "cells.jsonl").read_bytes()
    assert len(cells.splitlines()) == 8
    again = mars("experiment", "run", scenario, "--seeds", "1", "--workers", "1")
    assert "8 cells, 8 of them done" in again.stderr
    assert (out / "cells.jsonl").read_bytes() == cells
    more = mars("experiment", "run", scenario, "--workers", "2")
    assert "16 cells, 8 of them done" in more.stderr
    assert (out / "cells.jsonl").read_bytes().startswith(cells)
    (out / "report.json").unlink()
    assert mars("experiment", "report", "results/tiny").returncode == 0
    report = json.loads((out / "report.json").read_bytes())
    assert [p["seeds"] for p in report["points"]] == [[1, 2], [1, 2]]
    assert report["command"] == ["mars", "experiment", "run", "tiny.toml"]


def test_ctrl_c_keeps_what_is_done_and_ends_the_workers(background: Start, tmp_path: Path):
    long = TINY.replace("sessions = 4", "sessions = 40").replace("max_turns = 3\n", "")
    (tmp_path / "long.toml").write_text(long.replace("seeds = 2", "seeds = 50"))
    out = tmp_path / "out"
    arguments = ("experiment", "run", str(tmp_path / "long.toml"), "--out", str(out))
    running = background(*arguments, "--workers", "2")
    cells = out / "cells.jsonl"
    wait_until(lambda: cells.exists() and cells.read_bytes().count(b"\n") >= 2)
    workers = running.children()
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: running.process.poll() is not None)
    assert running.process.returncode == 130, running.err.read_text()
    assert "The same command goes on from here." in running.err.read_text()
    assert "Traceback" not in running.err.read_text()
    assert len(workers) >= 2
    wait_until(lambda: all(is_gone(worker) for worker in workers))
    lines = cells.read_bytes().splitlines()
    assert len(lines) >= 2
    assert all(json.loads(line)["summary"] for line in lines)


def test_workers_do_not_outlive_a_command_that_is_killed(background: Start, tmp_path: Path):
    long = TINY.replace("sessions = 4", "sessions = 40").replace("max_turns = 3\n", "")
    (tmp_path / "long.toml").write_text(long.replace("seeds = 2", "seeds = 50"))
    running = background(
        "experiment",
        "run",
        str(tmp_path / "long.toml"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
    )
    cells = tmp_path / "out" / "cells.jsonl"
    wait_until(lambda: cells.exists() and cells.read_bytes().count(b"\n") >= 2)
    workers = running.children()
    running.process.kill()
    wait_until(lambda: all(is_gone(worker) for worker in workers))
    assert len(workers) >= 2
    assert all(is_gone(worker) for worker in workers)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "none.toml"), "none.toml: cannot be read: No such file"),
        (("run", "tiny.toml", "--seeds", "0"), "--seeds is 0"),
        (("run", "tiny.toml", "--workers", "0"), "--workers is 0"),
        (("run", "wrong.toml"), "wrong.toml: Object contains unknown field `cores`"),
        (("report", "nothing"), "make it with `mars experiment run"),
    ],
)
def test_bad_input_is_one_error(
    mars: Run, scenario: str, tmp_path: Path, arguments: tuple[str, ...], expected: str
):
    (tmp_path / "wrong.toml").write_text(TINY.replace("cpus", "cores"))
    ran = mars("experiment", *arguments)
    assert ran.returncode == 1
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr
