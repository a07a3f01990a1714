# SPDX-License-Identifier: Apache-2.0
"""The numbers of a description are those one gets by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy.stats import ks_2samp

from mars.traces.describe import compare, describe, distance_table, ks_distance, to_json
from mars.traces.errors import TraceError
from mars.traces.io import read_trace
from mars.traces.schema import TraceSession, TraceTool, TraceTurn


def two_sessions() -> list[TraceSession]:
    def session(name: str, arrival_s: float, shared: int) -> TraceSession:
        tools = tuple(TraceTool(name="t", duration_s=s, cpu_s=s / 2) for s in (1.0, 3.0))
        return TraceSession(
            session_id=name,
            arrival_s=arrival_s,
            turns=(
                TraceTurn(
                    prompt_tokens=100, output_tokens=10, shared_prefix=("p", shared), tools=tools
                ),
                TraceTurn(prompt_tokens=150, output_tokens=40, gap_s=9.0),
            ),
        )

    return [session("a", 5.0, 80), session("b", 15.0, 60)]


def test_a_small_trace_by_hand() -> None:
    found = describe([*two_sessions(), TraceSession(session_id="only-a-task")])
    assert (found.num_sessions, found.num_turns, found.num_tool_calls) == (2, 4, 4)
    assert (found.prompt_tokens, found.output_tokens) == (500, 100)
    assert (found.tool_s, found.cpu_s) == (8.0, 4.0)
    assert found.intra_session_hit == 220 / 500
    assert found.tool_share == 8.0 / (8.0 + 2.0)
    assert found.top1_tool_share == 3.0 / 8.0
    assert found.arrival_rate == 0.1
    rows = found.statistics
    assert rows["shared_first_tokens"].max == 60
    assert (rows["append_tokens"].p50, rows["peak_tokens"].max) == (50, 190)
    # The gap after the last turn is nobody's wait.
    assert (rows["gap_s"].count, rows["gap_s"].max) == (2, 0.0)
    assert rows["tool_s"].mean == 2.0
    assert "tool_s[t]" not in rows


def test_the_whole_table_and_its_json() -> None:
    found = describe(read_trace("public:swe-agent"))
    table = found.table()
    for name in ("prompt_tokens", "tool_s[test]", "intra_session_hit", "top1_cpu_share"):
        assert f"\n{name} " in table
    assert max(len(line) for line in table.splitlines()) <= 110
    again = msgspec.json.decode(to_json(found))
    assert again["schema"] == "mars.describe/1"
    assert again["statistics"]["output_tokens"]["p50"] == found.statistics["output_tokens"].p50


def test_the_published_statistics_are_met() -> None:
    """TraceLab and the source papers report these orders for coding agents."""
    claude = describe(read_trace("public:claude-code"))
    assert 0.85 < claude.intra_session_hit < 0.96
    assert claude.statistics["shared_first_tokens"].p50 > 8_000
    swe = describe(read_trace("public:swe-agent"))
    assert 0.94 < swe.intra_session_hit < 0.99


def test_ks_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=300).round(1), rng.normal(0.3, size=200).round(1)
    assert ks_distance(left, right) == pytest.approx(ks_2samp(left, right).statistic)


def test_a_trace_is_no_distance_from_itself() -> None:
    distances = compare(two_sessions(), two_sessions())
    assert len(distances) == 15
    assert all(distance.ks == 0.0 for distance in distances)
    assert distance_table(distances).count("\n") == 15


def test_tasks_alone_cannot_be_described() -> None:
    with pytest.raises(TraceError, match="no session has recorded turns"):
        describe([TraceSession(session_id="t")])
