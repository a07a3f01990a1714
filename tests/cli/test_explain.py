# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def log(mars: Run, tmp_path: Path) -> Path:
    made = mars("trace", "synth", "t.jsonl", "--n", "6", "--regime", "light", "--rate", "2")
    assert made.returncode == 0, made.stderr
    flags = ("--policy", "mars-paper", "--admission", "cap:2", "--kv-tokens", "60000")
    ran = mars("sim", "t.jsonl", *flags, "--events", "events.jsonl")
    assert ran.returncode == 0, ran.stderr
    return tmp_path / "events.jsonl"


def test_sessions_are_listed_and_each_can_be_asked_for(mars: Run, log: Path) -> None:
    listed = mars("explain", "--events", str(log.parent), "--json")
    assert listed.returncode == 0, listed.stderr
    longest = json.loads(listed.stdout)["sessions"][0]
    shown = mars("explain", "--events", str(log), "--top", "2")
    assert shown.stdout.splitlines()[1].startswith(longest["session_id"])
    assert "... and 4 more sessions: --top 0 shows all" in shown.stdout
    one = mars("explain", longest["session_id"], "--events", str(log))
    assert one.returncode == 0, one.stderr
    first_line = one.stdout.splitlines()[0]
    assert first_line.startswith(f"{longest['session_id']} took ")
    assert longest["dominant_cause"] in first_line
    assert "What took longest" in one.stdout
    told = json.loads(mars("explain", longest["session_id"], "--events", str(log), "--json").stdout)
    assert told["schema"] == "mars.explain/1"
    assert sum(part["seconds"] for part in told["parts"]) == pytest.approx(told["completion_s"])


def test_a_torn_last_line_is_left_out(mars: Run, log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole[: whole.rindex(b'"session_ended"') + 8])
    ran = mars("explain", "--events", str(log))
    assert ran.returncode == 0, ran.stderr
    assert "so far" in ran.stdout


def test_bad_input_is_one_error_with_its_fix(mars: Run, log: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "mars.result/1"}\n')
    (tmp_path / "empty.jsonl").write_text(log.read_text().splitlines()[0] + "\n")
    for arguments, expected in (
        (("nobody", "--events", str(log)), "no session 'nobody' among the 6 of the log"),
        (("--events", "other.json"), "not an event log: other.json, line 1"),
        (("--events", "missing.jsonl"), "missing.jsonl: No such file"),
        (("--events", "empty.jsonl"), "the log has no sessions"),
    ):
        ran = mars("explain", *arguments)
        assert ran.returncode == 1
        assert expected in ran.stderr
        assert "Traceback" not in ran.stderr
