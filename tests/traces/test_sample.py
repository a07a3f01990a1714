# SPDX-License-Identifier: Apache-2.0
"""Sampling keeps what it does not mean to change, above all who shares which tokens with whom."""

from __future__ import annotations

import numpy as np
import pytest

from mars.traces.arrivals import arrival_times
from mars.traces.content import common_prefix_tokens, prompt_segments, reply_segment
from mars.traces.errors import TraceError
from mars.traces.io import read_trace
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, TraceTool, TraceTurn, check_session

CLAUDE = list(read_trace("public:claude-code"))
SWE = list(read_trace("public:swe-agent"))


def shared_tokens(left: TraceSession, right: TraceSession, turn: int = 0) -> int:
    return common_prefix_tokens(prompt_segments(left, turn), prompt_segments(right, turn))


def test_a_sample_repeats_and_another_seed_differs() -> None:
    first = sample(SWE, 8, seed=3, rate=0.1)
    assert first == sample(SWE, 8, seed=3, rate=0.1)
    assert {s.session_id for s in first} != {s.session_id for s in sample(SWE, 8, seed=4)}


def test_load_changes_when_sessions_arrive_not_which() -> None:
    slow, fast = sample(SWE, 8, seed=1, rate=0.1), sample(SWE, 8, seed=1, rate=0.4)
    assert [s.session_id for s in slow] == [s.session_id for s in fast]
    assert [s.arrival_s for s in slow] == pytest.approx([s.arrival_s * 4 for s in fast])
    assert slow[0].arrival_s == 0.0


def test_copies_share_what_their_original_shares_and_nothing_else() -> None:
    drawn = sample(CLAUDE, 2 * len(CLAUDE), seed=0)
    by_id = {session.session_id: session for session in drawn}
    assert len(by_id) == 2 * len(CLAUDE)
    for original in CLAUDE:
        copy = by_id[f"{original.session_id}#2"]
        others = [session for session in CLAUDE if session is not original]
        of_original = [shared_tokens(original, other) for other in others]
        assert [shared_tokens(copy, other) for other in others] == of_original
        # The copy's own work is its own: only what some third session has too is common.
        last = len(original.turns) - 1
        assert shared_tokens(copy, original, last) <= max(
            common_prefix_tokens(prompt_segments(original, last), prompt_segments(other, k))
            for other in others
            for k in range(len(other.turns))
        )


def test_copies_keep_the_sharing_within_the_session() -> None:
    original = CLAUDE[0]
    copy = next(s for s in sample(CLAUDE[:1], 2) if s.session_id.endswith("#2"))
    for k in range(1, len(original.turns)):
        was, now = (
            common_prefix_tokens(
                [*prompt_segments(s, k - 1), reply_segment(s, k - 1)], prompt_segments(s, k)
            )
            for s in (original, copy)
        )
        assert was == now


def test_bounds_cut_turns_gaps_tools_and_prompts() -> None:
    drawn = sample(CLAUDE, max_turns=10, max_gap_s=30.0, max_tool_s=20.0, max_prompt_tokens=60_000)
    turns = [turn for session in drawn for turn in session.turns]
    assert max(len(session.turns) for session in drawn) == 10
    assert max(turn.gap_s for turn in turns) == 30.0
    assert max(tool.duration_s for turn in turns for tool in turn.tools) == pytest.approx(20.0)
    assert max(turn.prompt_tokens for turn in turns) <= 60_000
    whole = {s.session_id: s for s in CLAUDE}
    for session in drawn:
        for turn, before in zip(session.turns, whole[session.session_id].turns, strict=False):
            for tool, was in zip(turn.tools, before.tools, strict=True):
                assert tool.cpu_s * was.duration_s == pytest.approx(was.cpu_s * tool.duration_s)


def test_scaling_time_leaves_tokens_and_scaling_tokens_leaves_sharing() -> None:
    slow = sample(CLAUDE, scale_time=2.5)
    for a, b in zip(slow, CLAUDE, strict=True):
        assert sum(t.gap_s for t in a.turns) == pytest.approx(2.5 * sum(t.gap_s for t in b.turns))
        assert [t.prompt_tokens for t in a.turns] == [t.prompt_tokens for t in b.turns]
    small = sample(CLAUDE, scale_tokens=0.5)
    assert small[1].turns[0].prompt_tokens == round(CLAUDE[1].turns[0].prompt_tokens / 2)
    for k in range(1, 6):
        assert shared_tokens(small[0], small[k]) == shared_tokens(CLAUDE[0], CLAUDE[k]) // 2
    odd = sample(CLAUDE, scale_tokens=0.3)
    for a, b in zip(odd, CLAUDE, strict=True):
        check_session(a)
        assert a.turns[0].block_size == 19
        assert a.turns[-1].prompt_tokens == round(b.turns[-1].prompt_tokens * 19 / 64)


def test_subagents_follow_their_parent() -> None:
    turn = TraceTurn(prompt_tokens=10, output_tokens=1)
    family = [
        TraceSession(session_id="p", arrival_s=100.0, turns=(turn,)),
        TraceSession(session_id="c", arrival_s=107.0, parent="p", turns=(turn,)),
        TraceSession(session_id="lone", arrival_s=103.0, turns=(turn,)),
    ]
    drawn = sample(family, 4, rate=1.0, seed=2)
    when = {session.session_id: session.arrival_s for session in drawn}
    assert len(drawn) == 6
    assert when["c"] - when["p"] == pytest.approx(7.0)
    assert when["c#2"] - when["p#2"] == pytest.approx(7.0)
    assert {s.parent for s in drawn} == {None, "p", "p#2"}
    assert [s.arrival_s for s in sample(family)] == [0.0, 3.0, 7.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 0},
        {"scale_time": 0.0},
        {"scale_tokens": float("nan")},
        {"rate": -1.0},
        {"rate": 1.0, "arrivals": "weibull"},
        {"rate": 1.0, "arrivals": "gamma:x"},
        {"rate": 1.0, "arrivals": "burst:0"},
        {"max_prompt_tokens": 10},
    ],
)
def test_senseless_settings_are_one_error(settings: dict[str, float]) -> None:
    with pytest.raises(TraceError, match=r"\.$"):
        sample(SWE, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("process", "cv", "tolerance"),
    [("poisson", 1.0, 0.05), ("gamma:2", 2.0, 0.1), ("gamma:6", 6.0, 0.9), ("even", 0.0, 1e-9)],
)
def test_arrivals_have_their_rate_and_variation(process: str, cv: float, tolerance: float) -> None:
    times = arrival_times(20_000, 0.5, process, seed=5)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert len(times) / times[-1] == pytest.approx(0.5, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=tolerance)


def test_bursts_come_in_groups_at_the_same_overall_rate() -> None:
    times = arrival_times(8_000, 2.0, "burst:8", seed=1)
    assert (np.diff(times) == 0.0).sum() == 7_000
    assert len(times) / times[-1] == pytest.approx(2.0, rel=0.1)
    assert arrival_times(5, 0.0, "together").tolist() == [0.0] * 5


def test_the_given_trace_stays_as_it_was() -> None:
    tool = TraceTool(name="t", duration_s=10.0, cpu_s=4.0)
    turn = TraceTurn(prompt_tokens=10, output_tokens=1, tools=(tool,), gap_s=5.0)
    session = TraceSession(session_id="s", turns=(turn,))
    changed = sample([session], 1, max_tool_s=5.0, scale_time=2.0, rate=1.0)[0]
    assert changed.turns[0].tools[0].duration_s == 10.0
    assert changed.turns[0].tools[0].cpu_s == 4.0
    assert changed.turns[0].gap_s == 10.0
    assert session.turns == (turn,)
