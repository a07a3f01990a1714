# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


def test_size_answers_with_table_json_and_plot(mars: Run, tmp_path: Path):
    done = mars(
        "size",
        *("--trace", "public:swe-agent", "--slo", "goodput@3=0.5", "--seeds", "1"),
        *("--sessions", "5", "--max-turns", "2", "--workers", "1"),
        *("--json", "size.json", "--plot", "size.png"),
    )
    assert done.returncode == 0, done.stderr
    assert "50% of sessions within 3x their time alone" in done.stdout
    tree = json.loads((tmp_path / "size.json").read_text())
    assert [m["label"] for m in tree["machines"][1:]] == [
        "1 more GPU",
        "1 more core",
        "1 GB more KV",
    ]
    assert (tmp_path / "size.png").stat().st_size > 1000


def test_what_makes_no_sense_is_refused(mars: Run):
    refused = mars("size", "--trace", "public:swe-agent", "--slo", "p99=3")
    assert refused.returncode == 1
    assert "give goodput@ALPHA=SHARE" in refused.stderr
    assert "--gpus is 0" in mars("size", "--trace", "public:swe-agent", "--gpus", "0").stderr
    assert "```" not in mars("size", "--help").stdout
