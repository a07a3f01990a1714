# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from mars.bench.result import SessionRecord, TurnRecord
from mars.bench.timeline import Span, Timeline, build_timeline, fill_records, run_totals
from mars.core import events as ev
from mars.telemetry.fold import Phase

START = 1000.0
SCALE = 2.0


def at(modelled_s: float) -> float:
    return START + SCALE * modelled_s


def sample(time_s: float, **fields: float) -> ev.EngineSampled:
    base: dict[str, float] = {
        "kv_blocks_total": 100, "kv_blocks_free": 40, "kv_blocks_retained": 10, "block_size": 16,
        "num_running": 2, "num_waiting": 1, "num_steps": 0, "busy_s": 0.0, "computed_tokens": 0,
        "recomputed_tokens": 0, "prefix_queries_tokens": 0, "prefix_hits_tokens": 0,
        "preemptions": 0, "shrunk_chunks": 0,
    }  # fmt: skip
    return ev.EngineSampled(time=at(time_s), **{**base, **fields})  # type: ignore[arg-type]


EVENTS: list[ev.Event] = [
    ev.SessionArrived(time=at(0), session_id="s"),
    ev.SessionHeld(time=at(0), session_id="s", num_held=1, window=1),
    ev.SessionAdmitted(time=at(3), session_id="s", held_s=6.0, mode="fcfs", num_active=1),
    ev.TurnSubmitted(
        time=at(3), session_id="s", request_id="r", turn_index=0,
        num_prompt_tokens=500, projected_kv_blocks=40,
    ),
    ev.TurnStarted(
        time=at(5), session_id="s", request_id="r", turn_index=0, num_cached_tokens=160, queue_s=4.0
    ),
    ev.TurnPreempted(time=at(5.2), session_id="s", request_id="r", lost_tokens=16),
    ev.TurnPreempted(time=at(5.4), session_id="s", request_id="r", lost_tokens=32),
    ev.FirstToken(time=at(6), session_id="s", request_id="r", turn_index=0, ttft_s=6.0),
    ev.TurnFinished(
        time=at(10), session_id="s", request_id="r", turn_index=0, num_prompt_tokens=500,
        num_output_tokens=20, num_cached_tokens=160, num_recomputed_tokens=48, num_preemptions=2,
        freed_blocks=0, retained_blocks=32, finish_reason="length",
    ),
    ev.ToolQueued(time=at(10), session_id="s", tool_call_id="t", tool_name="test"),
    ev.ToolStarted(time=at(11), session_id="s", tool_call_id="t", tool_name="test", queued_s=2.0),
    ev.ToolFinished(
        time=at(15), session_id="s", tool_call_id="t", tool_name="test", duration_s=8.0,
        cpu_seconds=1.0, peak_bytes=0, exit_code=0,
    ),
    ev.SessionEnded(time=at(16), session_id="s", reason="explicit", num_turns=1),
]  # fmt: skip


def timeline(*more: ev.Event) -> Timeline:
    # As logged: the tool's events come by another way than the engine's, and out of order.
    return build_timeline([*more, *reversed(EVENTS)], started_at=START, time_scale=SCALE)


def test_phases_follow_one_another_on_the_models_clock() -> None:
    assert timeline().spans["s"] == [
        Span(Phase.HELD, 0.0, 3.0),
        Span(Phase.QUEUE, 3.0, 5.0),
        Span(Phase.PREFILL, 5.0, 6.0),
        Span(Phase.DECODE, 6.0, 10.0),
        Span(Phase.TOOL_QUEUE, 10.0, 11.0),
        Span(Phase.TOOL, 11.0, 15.0),
        Span(Phase.IDLE, 15.0, 16.0),
    ]


def test_records_get_their_parts_and_counts() -> None:
    turn = TurnRecord(turn_index=0, sent_s=0.0, prompt_tokens=500, output_tokens=20)
    record = SessionRecord(session_id="s", arrival_s=0.0, sct_s=15.0, turns=[turn])
    unseen = SessionRecord(session_id="unseen", arrival_s=0.0, sct_s=None)
    fill_records([record, unseen], timeline())
    assert (record.held_s, record.queue_s, record.prefill_s, record.decode_s) == (3, 2, 1, 4)
    assert (record.tool_wait_s, record.tool_s, record.gap_s) == (1, 4, 1)
    assert (record.cached_tokens, record.computed_tokens) == (160, 500 - 160 + 20)
    assert (record.recomputed_tokens, record.preemptions) == (48, 2)
    assert record.turns[0].cached_tokens == 160
    assert unseen.held_s == 0.0


def test_totals_are_shares_of_real_time_and_the_last_counters() -> None:
    last = sample(
        16, busy_s=8.0, computed_tokens=900, recomputed_tokens=90, preemptions=2,
        prefix_queries_tokens=500, prefix_hits_tokens=160,
    )  # fmt: skip
    totals = run_totals(timeline(sample(8), last), duration_s=16.0, time_scale=SCALE, slots=2)
    assert totals.gpu_busy == pytest.approx(8.0 / 32.0)
    assert totals.cpu_busy == pytest.approx(8.0 / (2 * 32.0))
    assert (totals.computed_tokens, totals.recomputed_tokens) == (900, 90)
    assert (totals.prefix_queries_tokens, totals.prefix_hits_tokens) == (500, 160)


def test_without_a_log_only_the_duration_is_known() -> None:
    totals = run_totals(None, duration_s=5.0, time_scale=1.0, slots=2)
    assert (totals.duration_s, totals.gpu_busy, totals.preemptions) == (5.0, None, None)


def test_series_of_the_engine_are_shares_and_rates() -> None:
    line = timeline(
        sample(0),
        sample(2, computed_tokens=100, recomputed_tokens=25),
        sample(9, computed_tokens=100, recomputed_tokens=25),
        sample(10, computed_tokens=150, recomputed_tokens=100),
    )
    assert line.kv_used.values == pytest.approx([0.6] * 4)
    assert line.kv_retained.values == pytest.approx([0.1] * 4)
    assert line.kv_used.times_s == [0.0, 2.0, 9.0, 10.0]
    # Nothing computed in the last seconds has no share, and no share exceeds one.
    assert line.recompute_share.times_s == [2.0, 10.0]
    assert line.recompute_share.values == [0.25, 1.0]


def test_series_of_the_control_plane() -> None:
    unbounded = ev.WindowChanged(
        time=at(1), window=math.inf, num_active=0, num_held=1, is_kv_pressed=False,
        is_cpu_pressed=False, reason="start",
    )  # fmt: skip
    line = timeline(unbounded)
    assert math.isnan(line.window.values[0])
    assert max(line.num_held.values) == 1
    assert (line.num_held.values[-1], line.num_active.values[-1]) == (0, 0)
    assert max(line.num_active.values) == 1
