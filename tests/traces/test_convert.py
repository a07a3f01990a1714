# SPDX-License-Identifier: Apache-2.0
"""Conversion is reading one form and writing another, with their options."""

from __future__ import annotations

from pathlib import Path

import pytest

from mars.traces.convert import convert
from mars.traces.errors import TraceError
from mars.traces.importers import read_any
from mars.traces.io import read_trace

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_recording_becomes_ours(tmp_path: Path) -> None:
    source = FIXTURES / "thunderagent.replay.jsonl.xz"
    text = FIXTURES / "thunderagent.text.jsonl.xz"
    target = tmp_path / "t.jsonl.gz"
    assert convert(source, target, text_path=text) == 3
    sessions = list(read_trace(target))
    assert sessions == list(read_any(source, text_path=text))
    assert any(turn.text for session in sessions for turn in session.turns)


def test_ours_becomes_mooncake_and_back(tmp_path: Path) -> None:
    target = tmp_path / "t.jsonl"
    num_rows = convert("public:swe-agent", target, to="mooncake")
    assert num_rows == 1167
    assert convert(target, tmp_path / "u.jsonl", form="mooncake") == num_rows


def test_an_unknown_target_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="mars, mooncake"):
        convert("public:swe-agent", tmp_path / "t", to="weka")
    assert not (tmp_path / "t").exists()


def test_a_broken_source_leaves_no_half_target(tmp_path: Path) -> None:
    source, target = tmp_path / "s.jsonl", tmp_path / "t.jsonl"
    source.write_text((FIXTURES / "mooncake.jsonl").read_text() + "{}\n")
    target.write_text("what was there before")
    with pytest.raises(TraceError, match="line 19"):
        convert(source, target)
    assert target.read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_target_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no-folder.*cannot be written"):
        convert("public:swe-agent", tmp_path / "no-folder" / "t.jsonl")
