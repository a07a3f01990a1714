# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def trace(mars: Run) -> str:
    assert mars("trace", "synth", "t.jsonl", "--n", "3", "--regime", "light").returncode == 0
    return "t.jsonl"


def test_the_same_inputs_give_the_same_bytes_and_a_table(mars: Run, trace: str, tmp_path: Path):
    arguments = ("sim", trace, "--policy", "fcfs", "--admission", "cap:2", "--cpus", "2")
    ran = mars(*arguments, "--json", "a.json")
    assert ran.returncode == 0, ran.stderr
    assert "Completion time, mean (s)" in ran.stdout
    assert mars(*arguments, "--json", "b.json").returncode == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    result = json.loads((tmp_path / "a.json").read_bytes())
    assert result["schema"] == "mars.result/1"
    assert result["config"]["admission"] == "cap:2"
    assert result["summary"]["sessions"] == 3
    assert result["summary"]["sessions_failed"] == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--policy", "nope"), "'nope'; known:"),
        (("--admission", "nope"), "'nope'; known:"),
        (("--machine", "abacus"), "--machine: unknown profile 'abacus'"),
        (("--kv-tokens", "16"), "raise --kv-tokens"),
        (("--cpus", "0"), "--cpus is 0"),
    ],
)
def test_bad_input_is_one_error(mars: Run, trace: str, flags: tuple[str, ...], expected: str):
    ran = mars("sim", trace, *flags)
    assert ran.returncode == 1
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr
