# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from mars.traces.io import read_trace
from tests.cli.conftest import Run

FIXTURES = Path(__file__).parent.parent / "traces" / "fixtures"


def test_convert_reads_another_form_and_sim_and_describe_take_it(mars: Run, tmp_path: Path):
    ran = mars("trace", "convert", str(FIXTURES / "mooncake.jsonl"), "out.jsonl.xz")
    assert ran.returncode == 0, ran.stderr
    num_sessions = len(list(read_trace(tmp_path / "out.jsonl.xz")))
    assert ran.stdout == f"out.jsonl.xz: {num_sessions} lines of mars, from mooncake\n"
    described = json.loads(mars("trace", "describe", "out.jsonl.xz", "--json").stdout)
    assert described["num_sessions"] == num_sessions


def test_an_option_of_the_reader_is_passed_on_with_its_type(mars: Run, tmp_path: Path):
    source = str(FIXTURES / "mooncake.jsonl")
    assert (
        mars("trace", "convert", source, "a.jsonl", "--option", "block_tokens=256").returncode == 0
    )
    turn = next(read_trace(tmp_path / "a.jsonl")).turns[0]
    assert turn.block_size == 256


def test_an_option_the_reader_lacks_is_refused_with_those_it_has(mars: Run):
    ran = mars("trace", "convert", str(FIXTURES / "mooncake.jsonl"), "a.jsonl", "--option", "x=1")
    assert ran.returncode == 1
    assert "the reader of 'mooncake' takes block_tokens, scope" in ran.stderr


def test_sample_and_synth_are_reproducible(mars: Run, tmp_path: Path):
    for name in ("a", "b"):
        assert mars("trace", "synth", f"{name}.jsonl", "--n", "3", "--seed", "5").returncode == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    ran = mars("trace", "sample", "a.jsonl", "c.jsonl", "--n", "2", "--rate", "0.5")
    assert ran.stdout == "c.jsonl: 2 sessions\n"
    distances = mars("trace", "describe", "a.jsonl", "--against", "b.jsonl").stdout.splitlines()
    assert float(distances[1].split()[1]) == 0.0


def test_a_broken_line_is_named(mars: Run, tmp_path: Path):
    mars("trace", "synth", "a.jsonl", "--n", "2")
    path = tmp_path / "a.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1].replace('"prompt_tokens":', '"prompt_tokens":"x', 1))
    ran = mars("trace", "describe", "a.jsonl")
    assert ran.returncode == 1
    assert "a.jsonl" in ran.stderr
    assert "2" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_folder_that_is_not_there_is_named(mars: Run):
    ran = mars("trace", "synth", "nowhere/a.jsonl", "--n", "1")
    assert ran.returncode == 1
    assert "nowhere/a.jsonl" in ran.stderr
    assert "Traceback" not in ran.stderr
