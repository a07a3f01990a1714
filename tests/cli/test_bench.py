# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from mars.cli.ports import free_port as another_port
from tests.cli.conftest import Run
from tests.cli.test_gateway import engine_url

__all__ = ["engine_url"]


@pytest.fixture
def trace(mars: Run, tmp_path: Path) -> str:
    made = mars("trace", "synth", "long.jsonl", "--n", "2", "--regime", "light", "--seed", "1")
    assert made.returncode == 0
    cut = mars("trace", "sample", "long.jsonl", "t.jsonl", "--max-turns", "2", "--max-gap-s", "0")
    assert cut.returncode == 0
    return "t.jsonl"


def test_replay_measures_what_clients_of_a_server_see(
    mars: Run, trace: str, engine_url: str, tmp_path: Path
):
    ran = mars(
        "bench",
        "replay",
        trace,
        "--url",
        f"{engine_url}/v1",
        "--tool-slots",
        "2",
        "--machine",
        "h100-qwen3-coder-30b",
        "--json",
        "r.json",
        "--time-scale",
        "0.05",
    )
    assert (tmp_path / "r.json").exists(), ran.stderr
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert result["summary"]["sessions"] == 2
    assert all(len(session["turns"]) == 2 for session in result["sessions"])
    assert all(session["ideal_s"] > 0 for session in result["sessions"])


def test_replay_without_a_server_is_one_error(mars: Run, trace: str):
    ran = mars("bench", "replay", trace, "--url", f"http://127.0.0.1:{another_port()}")
    assert ran.returncode == 1
    assert ran.stderr.startswith("mars: error: --url: no server offers models at")
    assert "Traceback" not in ran.stderr


def test_compare_sets_results_side_by_side(mars: Run, trace: str):
    for policy in ("fcfs", "mars-paper"):
        arguments = ("--policy", policy, "--admission", "none", "--json", f"{policy}.json")
        assert mars("sim", trace, *arguments).returncode == 0
    ran = mars("bench", "compare", "fcfs.json", "mars-paper.json")
    assert ran.returncode == 0
    assert " fcfs " in ran.stdout
    assert "mars-paper: mean completion time" in ran.stdout


def test_compare_of_something_else_is_refused(mars: Run, tmp_path: Path):
    (tmp_path / "x.json").write_text("{}")
    ran = mars("bench", "compare", "x.json")
    assert ran.returncode == 1
    assert "x.json" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_demo_outside_the_repository_says_so(mars: Run):
    ran = mars("bench", "demo")
    assert ran.returncode == 1
    assert "there is no scenario scenarios/demo.toml" in ran.stderr
