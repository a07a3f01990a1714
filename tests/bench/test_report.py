# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mars.bench import plots
from mars.bench.metrics import summarise
from mars.bench.plots import PlottedRun
from mars.bench.report import figures, html_report, write_report
from mars.bench.requests import request_details
from mars.bench.result import ReplayQuality, Result, RunTotals, SessionRecord, TurnRecord
from mars.bench.timeline import build_timeline
from mars.core import events as ev

QUALITY = ReplayQuality(
    verdict="degraded",
    reasons=["replay lag p99 0.2s > 0.1s"],
    time_scale=1.0,
    lag_p50_s=0.01,
    lag_p99_s=0.2,
    lag_max_s=0.3,
    loop_lag_p99_s=0.01,
    cpu_usage_mean=0.5,
    cpu_pressure_mean=None,
    engine_late_s=1.0,
    engine_late_share=0.01,
)


def _events(session_id: str, start: float) -> list[ev.Event]:
    turn = {"session_id": session_id, "request_id": session_id, "turn_index": 0}
    return [
        ev.SessionArrived(time=start, session_id=session_id),
        ev.SessionHeld(time=start, session_id=session_id, num_held=1, window=1),
        ev.SessionAdmitted(time=start + 1, session_id=session_id, held_s=1, mode="", num_active=1),
        ev.TurnSubmitted(time=start + 1, num_prompt_tokens=9, projected_kv_blocks=1, **turn),
        ev.TurnStarted(time=start + 2, num_cached_tokens=0, queue_s=1.0, **turn),
        ev.FirstToken(time=start + 3, ttft_s=2.0, **turn),
        ev.SessionEnded(time=start + 9, session_id=session_id, reason="explicit"),
    ]  # type: ignore[arg-type]


def _run(label: str, factor: float, with_log: bool = True) -> PlottedRun:
    turn = TurnRecord(
        turn_index=0, sent_s=0.5, prompt_tokens=9, output_tokens=5, ttft_s=1.0, end_s=3.5
    )
    sessions = [
        SessionRecord(
            session_id="s0", arrival_s=0.0, sct_s=9.0 * factor, ideal_s=5.0, turns=[turn]
        ),
        SessionRecord(session_id="s1", arrival_s=1.0, sct_s=8.0 * factor, ideal_s=5.0),
        SessionRecord(session_id="<s2>", arrival_s=2.0, sct_s=None, error="engine gone"),
    ]
    events = [e for i in range(3) for e in _events(f"s{i}" if i < 2 else "<s2>", 100.0 + i)]
    result = Result(
        config={"serve": ["-m", "mars", "serve", "--policy", label], "scenario": {"seed": 1}},
        summary=summarise(sessions, RunTotals(duration_s=20.0)),
        sessions=sessions,
        replay=QUALITY,
    )
    return PlottedRun(label, result, build_timeline(events, started_at=100.0) if with_log else None)


RUNS = [_run("fcfs", 2.0), _run("mars <best>", 1.0)]


@pytest.mark.parametrize(
    "draw", [plots.session_timelines, plots.loads, plots.distributions, plots.time_shares]
)
def test_a_figure_is_well_formed_and_the_same_each_time(draw) -> None:
    text = plots.svg(draw(RUNS))
    assert ET.fromstring(text).tag.endswith("svg")
    assert text == plots.svg(draw(RUNS))


def test_the_page_needs_nothing_from_elsewhere_and_escapes_names() -> None:
    page = html_report(
        RUNS, "Title & more", "lead", ["verdict"], ["mars", "bench", "demo"], figures(RUNS)
    )
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "mars &lt;best&gt;" in page
    assert "Title &amp; more" in page
    assert page.count("<figure>") == 4
    assert "degraded" in page
    assert "--policy fcfs" in page


def test_without_any_event_log_the_table_still_comes() -> None:
    runs = [_run("fcfs", 1.0, with_log=False)]
    page = html_report(runs, "t", "l", [], ["x"], figures(runs))
    assert "<figure>" not in page
    assert "Completion time, mean (s)" in page


def test_the_report_is_a_page_a_text_with_its_figures_and_the_numbers(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r", RUNS, title="T", lead="L", command=["mars", "bench"])
    assert path.read_text().startswith("<!doctype html>")
    markdown = (tmp_path / "r" / "report.md").read_text()
    assert "| Completion time, mean (s) | 17.0 | **8.5** |" in markdown
    assert "2.00x shorter than fcfs" in markdown
    summaries = json.loads((tmp_path / "r" / "report.json").read_text())
    assert summaries["fcfs"]["summary"]["sct_mean_s"] == 17.0
    for name in ("session-timelines", "time-shares", "distributions", "loads"):
        assert (tmp_path / "r" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({name}.png)" in markdown


def test_request_details_have_the_shape_of_vllm_bench() -> None:
    details = request_details(RUNS[0].result, "m")
    assert (details["completed"], details["failed"], details["num_prompts"]) == (1, 0, 1)
    assert details["total_output_tokens"] == 5
    assert details["mean_ttft_ms"] == 1000.0
    assert details["mean_e2el_ms"] == 3000.0
    assert details["mean_tpot_ms"] == 500.0  # (3 s - 1 s) over the four tokens after the first
    assert details["itls"] == [[0.5]]
    assert details["errors"] == [""]
    assert details["session_ids"] == ["s0"]
