# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from mars.core import events as ev
from mars.telemetry.fold import Fold, Phase, fold_events
from mars.telemetry.views import Span

S: dict[str, Any] = {"session_id": "s"}


def submitted(time: float, request_id: str = "r", **more: Any) -> ev.TurnSubmitted:
    fields = {"turn_index": 0, "num_prompt_tokens": 100, "projected_kv_blocks": 7} | S | more
    return ev.TurnSubmitted(time=time, request_id=request_id, **fields)


def started(time: float, request_id: str = "r") -> ev.TurnStarted:
    return ev.TurnStarted(
        time=time, request_id=request_id, turn_index=0, num_cached_tokens=64, queue_s=1.0, **S
    )


def first_token(time: float, request_id: str = "r") -> ev.FirstToken:
    return ev.FirstToken(time=time, request_id=request_id, turn_index=0, ttft_s=1.0, **S)


def finished(time: float, request_id: str = "r", **more: Any) -> ev.TurnFinished:
    fields: dict[str, Any] = {
        "turn_index": 0,
        "num_prompt_tokens": 100,
        "num_output_tokens": 10,
        "num_cached_tokens": 64,
        "num_recomputed_tokens": 16,
        "num_preemptions": 0,
        "freed_blocks": 0,
        "retained_blocks": 6,
        "finish_reason": "stop",
    }
    return ev.TurnFinished(time=time, request_id=request_id, **(fields | S | more))


def ended(time: float, reason: str = "explicit", generation: int = 0) -> ev.SessionEnded:
    return ev.SessionEnded(time=time, reason=reason, generation=generation, **S)


def whole_life() -> list[ev.Event]:
    return [
        ev.SessionArrived(time=0.0, tenant="team", **S),
        ev.SessionHeld(time=0.0, num_held=1, window=1, **S),
        ev.SessionAdmitted(time=2.0, held_s=2.0, mode="fcfs", num_active=1, **S),
        submitted(2.5),
        started(3.0),
        first_token(5.0),
        finished(9.0),
        ev.ToolQueued(time=9.5, tool_call_id="c", tool_name="bash", **S),
        ev.ToolStarted(time=10.0, tool_call_id="c", tool_name="bash", queued_s=0.5, **S),
        ev.ToolFinished(
            time=14.0,
            tool_call_id="c",
            tool_name="bash",
            duration_s=4.0,
            cpu_seconds=3.0,
            peak_bytes=9,
            exit_code=0,
            **S,
        ),
        ended(15.0),
    ]


def test_a_session_goes_through_all_phases_without_a_gap() -> None:
    fold = fold_events(whole_life())
    view = fold.ended["s", 0]
    assert view.spans == [
        Span(Phase.HELD, 0.0, 2.0),
        Span(Phase.QUEUE, 2.0, 3.0),
        Span(Phase.PREFILL, 3.0, 5.0),
        Span(Phase.DECODE, 5.0, 9.0),
        Span(Phase.IDLE, 9.0, 9.5),
        Span(Phase.TOOL_QUEUE, 9.5, 10.0),
        Span(Phase.TOOL, 10.0, 14.0),
        Span(Phase.IDLE, 14.0, 15.0),
    ]
    assert sum(view.phase_s.values()) == 15.0
    assert (view.tenant, view.held_s, view.num_turns, view.context_tokens) == ("team", 2.0, 1, 110)
    assert view.turns[0].first_token_at == 5.0
    assert view.tools[0].queued_at == 9.5
    assert fold.sessions == {}


def test_the_counters_add_up() -> None:
    sums = fold_events(whole_life()).counters
    assert sums.prefix_hit_rate == 0.64
    assert (sums.recomputed_tokens, sums.tool_cpu_seconds, sums.sessions_ended) == (
        16,
        3.0,
        {"explicit": 1},
    )
    assert sums.num_events == len(whole_life())


def test_held_and_active_are_told_apart() -> None:
    fold = fold_events(whole_life()[:2])
    assert (fold.num_held, fold.num_active) == (1, 0)
    fold.apply(whole_life()[2])
    assert (fold.num_held, fold.num_active) == (0, 1)


def test_parallel_turns_show_the_furthest_one() -> None:
    fold = fold_events([submitted(1.0, "a"), submitted(1.5, "b"), started(2.0, "a")])
    assert fold.sessions["s"].phase is Phase.PREFILL
    fold.apply(finished(3.0, "a"))
    assert fold.sessions["s"].phase is Phase.QUEUE
    fold.apply(finished(4.0, "b"))
    assert fold.sessions["s"].phase is Phase.IDLE


def test_engine_stragglers_belong_to_the_life_that_ended() -> None:
    fold = fold_events([submitted(1.0), ended(2.0, "single_turn"), finished(1.9)])
    assert fold.sessions == {}
    assert fold.ended["s", 0].turns[0].finished_at == 1.9


def test_a_submission_that_arrives_after_the_end_but_was_before_makes_no_new_life() -> None:
    arrived = ev.SessionArrived(time=0.0, **S)
    fold = fold_events([arrived, ended(2.0), submitted(1.0), finished(1.5)])
    assert fold.sessions == {}
    assert len(fold.ended) == 1


def test_an_id_used_again_is_another_life() -> None:
    again = ev.SessionArrived(time=10.0, generation=1, **S)
    fold = fold_events([submitted(1.0), finished(2.0), ended(3.0), again, submitted(11.0)])
    assert fold.sessions["s"].num_turns == 1
    fold.apply(finished(12.0))
    fold.apply(ended(13.0, generation=1))
    assert list(fold.ended) == [("s", 0), ("s", 1)]
    assert [len(view.turns) for view in fold.ended.values()] == [1, 1]


def test_an_ended_life_keeps_nothing_open_in_the_engines_order_of_events() -> None:
    fold = fold_events([submitted(1.0), ended(2.0), finished(2.5)])
    assert fold.sessions == {}
    assert fold.ended["s", 0].open_turns == {}


def test_retained_blocks_are_those_of_live_sessions() -> None:
    retained = ev.KvRetained(time=2.0, num_blocks=6, value=1.0, **S)
    fold = fold_events([submitted(1.0), retained])
    assert fold.kv_blocks_retained == 6
    fold.apply(ev.KvReleased(time=3.0, num_blocks=6, held_s=1.0, reason="returned", **S))
    assert fold.kv_blocks_retained == 0
    assert fold.counters.kv_released == {"returned": 1}


def test_memory_is_bounded_by_what_is_to_be_kept() -> None:
    fold = Fold(keep_history=False, keep_ended=10, keep_samples=5)
    for i in range(1000):
        name = {"session_id": f"s{i}"}
        fold.apply(submitted(float(i), **name))
        fold.apply(finished(i + 0.5, **name))
        fold.apply(ev.SessionEnded(time=i + 0.6, session_id=f"s{i}", reason="idle"))
        fold.apply(
            ev.WindowChanged(
                time=float(i),
                window=1.0,
                num_active=0,
                num_held=0,
                is_kv_pressed=False,
                is_cpu_pressed=False,
                reason="",
            )
        )
    assert (len(fold.sessions), len(fold.ended), len(fold.windows)) == (0, 10, 5)
    assert len(fold._last_life) == 10
    assert all(not view.turns and not view.spans for view in fold.ended.values())
    assert fold.counters.sessions_ended == {"idle": 1000}


def test_sessions_that_nobody_ends_can_be_forgotten() -> None:
    fold = fold_events([submitted(1.0), submitted(5.0, session_id="other")])
    fold.forget(lambda view: view.phase_since < 2.0)
    assert list(fold.sessions) == ["other"]
