# SPDX-License-Identifier: Apache-2.0
"""Accounts of simulated and hand-written logs: they add up, and they name the reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from mars.core import events as ev
from mars.sim.run import SimConfig, simulate
from mars.telemetry.explain import RunLog, UnknownSessionError, explain, list_sessions
from mars.telemetry.explain.account import Life, first_recomputed
from mars.telemetry.explain.words import seconds, share
from tests.sim.workloads import Shape

PRESSED = SimConfig(kv_tokens=24_000, num_cpus=2)
BUSY = Shape(2, num_sessions=16, rate=8.0, growth_tokens=5000, num_turns=5, shared=0.3)
POLICIES = ["fcfs", "autellix", "continuum-dynamic", "mars-paper", "mars"]


def simulated(policy: str, admission: str = "cap:6"):
    seen: list[ev.Event] = []
    config = dataclasses.replace(PRESSED, policy=policy, admission=admission)
    result = simulate(BUSY.trace(), config, sink=seen.append)
    return result, seen


@pytest.mark.parametrize("policy", POLICIES)
def test_the_account_of_every_session_adds_up_to_its_completion_time(policy: str) -> None:
    result, seen = simulated(policy)
    log = RunLog(seen)
    for record in result.sessions:
        told = explain(log, record.session_id)
        assert record.sct_s is not None
        assert told.completion_s == pytest.approx(record.sct_s, rel=0.01)
        assert sum(part.share for part in told.parts) == pytest.approx(1.0, rel=0.01)
        assert sum(turn.total_s for turn in told.turns) == pytest.approx(record.sct_s, rel=0.01)
        assert sum(m.duration_s for m in told.moments) == pytest.approx(record.sct_s, rel=0.01)
        spent = {part.cause: part.seconds for part in told.parts}
        expected = {
            "held outside the engine": record.held_s,
            "waiting for a first step": record.queue_s,
            "waiting for a tool slot": record.tool_wait_s,
            "tool": record.tool_s,
            "client": record.gap_s,
        }
        for cause, value_s in expected.items():
            assert spent.get(cause, 0.0) == pytest.approx(value_s, abs=1e-6), cause
        inside_s = record.prefill_s + record.decode_s
        causes = ("new prefill", "repeated prefill", "decode", "waiting again after preemption")
        assert sum(spent.get(cause, 0.0) for cause in causes) == pytest.approx(inside_s)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_decision_is_an_event_and_is_told(policy: str) -> None:
    result, seen = simulated(policy)
    kinds = Counter(event.kind for event in seen)
    preemptions = sum(record.preemptions for record in result.sessions)
    assert kinds["turn_preempted"] == result.summary.preemptions == preemptions
    assert kinds["turn_resumed"] == preemptions
    # What is held for the very last session to end is never asked for again.
    assert kinds["kv_retained"] - kinds["kv_released"] in (0, 1)
    log = RunLog(seen)
    told = [explain(log, record.session_id) for record in result.sessions]
    counts = Counter(decision.kind for one in told for decision in one.decisions)
    assert counts["preemption"] == preemptions
    assert counts["retention"] == kinds["kv_retained"]
    assert counts["eviction"] == kinds["kv_evicted"]
    assert counts["shrunk chunk"] == kinds["chunk_shrunk"]
    assert counts["level"] == kinds["level_changed"]
    recomputed = sum(turn.num_recomputed_tokens for one in told for turn in one.turns)
    assert recomputed == sum(record.recomputed_tokens for record in result.sessions)


@pytest.mark.parametrize("policy", ["fcfs", "mars-paper", "mars"])
def test_what_is_computed_again_was_evicted_before(policy: str) -> None:
    """Whether LRU or a policy chose it: no live session loses KV without an event."""
    seen: list[ev.Event] = []
    shape = dataclasses.replace(BUSY, shared=0.0)
    simulate(shape.trace(), dataclasses.replace(PRESSED, policy=policy), sink=seen.append)
    log, num_turns = RunLog(seen), 0
    for line in list_sessions(log):
        life = Life(log, log.view(line.session_id))
        for before, turn in pairwise(life.turns):
            assert before.finished_at is not None
            assert turn.started_at is not None
            evicted = sum(
                event.num_blocks
                for event in life.decisions(ev.KvEvicted)
                if isinstance(event, ev.KvEvicted)
                and before.finished_at <= event.time <= turn.started_at
            )
            # The block of the last sampled token counts as lost, but was never computed.
            assert (evicted + 1) * PRESSED.block_size >= first_recomputed(turn)
            num_turns += first_recomputed(turn) > 0
    assert num_turns > 10


def test_a_level_change_begins_where_the_last_one_ended() -> None:
    _, seen = simulated("mars-paper", "none")
    level: dict[str, int] = {}
    reasons: set[str] = set()
    for event in seen:
        if isinstance(event, ev.LevelChanged):
            assert event.level_from == level.get(event.session_id, 0)
            assert event.level_to != event.level_from
            level[event.session_id] = event.level_to
            reasons.add(event.reason)
    assert {"arrival", "quantum", "decode", "preempted", "resumed"} <= reasons
    assert set(level.values()) == {0}


def test_a_policy_without_levels_tells_none() -> None:
    assert not any(isinstance(event, ev.LevelChanged) for event in simulated("mars")[1])


# --- a log written by hand ---------------------------------------------------------------
S: dict[str, Any] = {"session_id": "a"}


def turn(index: int, at: float, started: float, first: float, done: float, **more: Any):
    fields = {"prompt": 1000, "cached": 0, "recomputed": 0} | more
    of = S | {"request_id": f"r{index}", "turn_index": index}
    return [
        ev.TurnSubmitted(time=at, num_prompt_tokens=fields["prompt"], projected_kv_blocks=70, **of),
        ev.TurnStarted(
            time=started, num_cached_tokens=fields["cached"], queue_s=started - at, **of
        ),
        ev.FirstToken(time=first, ttft_s=first - at, **of),
        ev.TurnFinished(
            time=done,
            num_prompt_tokens=fields["prompt"],
            num_output_tokens=11,
            num_cached_tokens=fields["cached"],
            num_recomputed_tokens=fields["recomputed"],
            num_preemptions=0,
            freed_blocks=0,
            retained_blocks=62,
            finish_reason="stop",
            **of,
        ),
    ]


def by_hand() -> list[ev.Event]:
    return [
        ev.SessionArrived(time=100.0, **S),
        ev.SessionHeld(time=100.0, num_held=3, window=5, **S),
        ev.SessionHeld(time=101.0, num_held=4, window=5, session_id="b"),
        ev.WindowChanged(
            time=102.0,
            window=4.0,
            num_active=5,
            num_held=4,
            is_kv_pressed=True,
            is_cpu_pressed=False,
            reason="kv",
        ),
        ev.SessionAdmitted(
            time=103.0, held_s=2.0, mode="short_first", num_active=4, session_id="b"
        ),
        ev.SessionAdmitted(time=110.0, held_s=10.0, mode="fcfs", num_active=4, **S),
        *turn(0, 110.0, 111.0, 113.0, 118.0),
        ev.KvRetained(time=118.0, num_blocks=62, value=0.25, **S),
        ev.ToolQueued(time=118.0, tool_call_id="c", tool_name="pytest", **S),
        ev.ToolStarted(time=120.0, tool_call_id="c", tool_name="pytest", queued_s=2.0, **S),
        ev.KvReleased(time=121.0, num_blocks=62, held_s=3.0, reason="pressure", **S),
        ev.KvEvicted(time=122.0, num_blocks=60, value=0.125, **S),
        ev.ToolFinished(
            time=125.0,
            tool_call_id="c",
            tool_name="pytest",
            duration_s=5.0,
            cpu_seconds=4.0,
            peak_bytes=1,
            exit_code=1,
            **S,
        ),
        *turn(1, 126.0, 127.0, 131.0, 140.0, prompt=1200, cached=200, recomputed=750),
        ev.SessionEnded(time=140.0, reason="explicit", num_turns=2, **S),
    ]


def test_each_stretch_is_told_with_its_reason_and_inputs() -> None:
    told = explain(RunLog(by_hand()), "a")
    assert told.headline.startswith("a took 40.0 s over 2 turns: decode 35%, held")
    assert {part.cause: part.seconds for part in told.parts} == pytest.approx(
        {
            "held outside the engine": 10.0,
            "waiting for a first step": 2.0,
            "repeated prefill": 3.0,
            "new prefill": 3.0,
            "decode": 14.0,
            "waiting for a tool slot": 2.0,
            "tool": 5.0,
            "client": 1.0,
        }
    )
    said = {(m.cause, m.turn_index): m.text for m in told.moments}
    held = said["held outside the engine", 0]
    assert "behind 2 others, 5 sessions allowed in at once" in held
    assert "the window moved 1 time between 4 and 4 (1 x kv)" in held
    assert "1 held session was let in first, 1 of which came after it" in held
    assert "let in as fcfs, 4 active with it" in held
    again = said["prefill", 1]
    assert "75% of it computed again" in again
    assert "750 tokens were lost" in again
    assert "held for 3.0 s until +21.0 s, when memory was short" in again
    assert "60 blocks evicted at +22.0 s, worth 0.125 each then" in again
    assert "pytest for 5.0 s (4.0 s of CPU, exit 1)" in said["tool", 0]
    retention, eviction = told.decisions
    assert retention.kind == "retention"
    assert "kept 62 blocks, worth 0.25 each, for 3.0 s; released" in retention.text
    assert [i["kind"] for i in retention.inputs] == ["kv_retained", "kv_released"]
    assert eviction.inputs[0]["num_blocks"] == 60


def test_preempted_time_is_waiting_not_prefill() -> None:
    events = turn(0, 0.0, 1.0, 9.0, 12.0, recomputed=400)
    of = S | {"request_id": "r0"}
    events += [
        ev.TurnPreempted(time=3.0, lost_tokens=400, rank=(1.0, 2.0), **of),
        ev.TurnResumed(time=7.0, num_cached_tokens=0, num_recomputed_tokens=400, **of),
        ev.SessionEnded(time=12.0, reason="explicit", **S),
    ]
    told = explain(RunLog(events), "a")
    spent = {part.cause: part.seconds for part in told.parts}
    assert spent["waiting again after preemption"] == pytest.approx(4.0)
    # 4 s of prefill for 1400 tokens, 400 of which were computed twice.
    assert spent["repeated prefill"] == pytest.approx(4.0 * 400 / 1400)
    assert sum(spent.values()) == pytest.approx(12.0)
    assert "(rank 1, 2); ran again after 4.0 s" in told.decisions[0].text


def test_a_log_that_stops_in_the_middle_is_told_so_far() -> None:
    cut = [event for event in by_hand() if event.time <= 120.0]
    told = explain(RunLog(cut), "a")
    assert not told.is_complete
    assert told.headline.startswith("a has taken 20.0 s")
    assert "does not see this session end" in told.notes[0]
    assert "still held when the log ends" in told.decisions[0].text
    assert sum(part.seconds for part in told.parts) == pytest.approx(20.0)


def test_idleness_until_the_session_is_given_up_is_not_its_completion_time() -> None:
    events = [event for event in by_hand() if not isinstance(event, ev.SessionEnded)]
    events.append(ev.SessionEnded(time=1040.0, reason="idle", **S))
    told = explain(RunLog(events), "a")
    assert told.completion_s == pytest.approx(40.0)
    assert any("15 min 0 s at the end" in note for note in told.notes)


def test_lives_of_one_id_are_told_apart() -> None:
    again = [dataclasses.replace(event, time=event.time + 200.0) for event in by_hand()]
    log = RunLog([*by_hand(), *again])
    assert explain(log, "a").generation == 1
    first = explain(log, "a", 0)
    assert len(first.turns) == 2
    assert first.completion_s == pytest.approx(40.0)
    with pytest.raises(UnknownSessionError, match="has no life 7; it has 0, 1"):
        explain(log, "a", 7)


def test_an_unknown_session_is_answered_with_the_nearest() -> None:
    log = RunLog(simulated("fcfs")[1])
    with pytest.raises(UnknownSessionError, match="no session 's07x' among the 16.*s07"):
        explain(log, "s07x")


def test_sessions_are_listed_by_completion_time_with_what_took_most() -> None:
    _, seen = simulated("fcfs", "cap:2")
    lines = list_sessions(RunLog(seen))
    assert len(lines) == 16
    times = [line.completion_s for line in lines]
    assert times == sorted(times, reverse=True)
    assert lines[0].dominant_cause == "held outside the engine"
    assert 0.0 < lines[0].dominant_share <= 1.0


def test_numbers_are_written_for_people() -> None:
    written = [seconds(value_s) for value_s in (0.0, 0.034, 3.21, 119.96, 312.0, 7980.0)]
    assert written == ["0 s", "34 ms", "3.2 s", "2 min 0 s", "5 min 12 s", "2 h 13 min"]
    assert [share(part, 1.0) for part in (0.0, 0.004, 0.254)] == ["0%", "<1%", "25%"]
