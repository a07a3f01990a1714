# SPDX-License-Identifier: Apache-2.0
"""The whole path: recorded sessions, real gateway, real vLLM on the emulated accelerator."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import psutil
import pytest

from mars.bench.demo import free_port
from mars.bench.ideal import cached_tokens
from mars.bench.result import read_result
from mars.bench.runner import Experiment, Outcome, Running, run_contestant
from mars.bench.scenario import Contestant, Machine, Scenario, Workload
from mars.core import events as ev
from mars.profiles import load_profile
from mars.telemetry import read_records
from mars.traces.content import layout
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

PROFILE = "h100-80gb-qwen3-coder-30b-a3b"
BLOCK_SIZE = 16
PAPER = Contestant(label="mars-paper", policy="mars-paper", admission="aimd-paper")
TOOL = TraceTool(name="test", duration_s=0.2, cpu_s=0.05, peak_bytes=4_000_000)


def session(session_id: str, arrival_s: float, num_turns: int = 3) -> TraceSession:
    """Turns of 2,000 tokens and more with odd lengths, so that blocks are cut."""
    turns = tuple(
        TraceTurn(prompt_tokens=2003 + 511 * i, output_tokens=21 + i, tools=(TOOL,), gap_s=0.1)
        for i in range(num_turns)
    )
    return TraceSession(session_id=session_id, arrival_s=arrival_s, turns=turns)


def experiment(*sessions: TraceSession) -> Experiment:
    machine = Machine(profile=PROFILE, kv_tokens=60_000)
    scenario = Scenario(
        title="test", workload=Workload(trace="-"), machine=machine, policies=(PAPER,)
    )
    return Experiment(scenario, sessions, load_profile(PROFILE), 60_000)


async def leave_mid_stream(running: Running) -> None:
    """A client that is not part of the replay, gone after its first token."""
    while running.replay.progress.num_turns_done < 1:
        await asyncio.sleep(0.05)
    body = {
        "model": load_profile(PROFILE).model,
        "prompt": list(range(16, 116)),
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"X-Session-ID": "leaver"}
    url = f"{running.server.url}/v1/completions"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=body, headers=headers) as response,
    ):
        async for part in response.content.iter_any():
            if part.startswith(b"data:"):
                break
        response.close()
    await asyncio.Event().wait()


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Three sessions of three turns, and one client that leaves."""
    sessions = [session(f"s{i}", 0.4 * i) for i in range(3)]
    folder = tmp_path_factory.mktemp("replay")
    run = run_contestant(
        experiment(*sessions), PAPER, folder, port=free_port(), watch=leave_mid_stream
    )
    return asyncio.run(run)


def _events(outcome: Outcome, kind: type[ev.Event]) -> list:
    records = read_records(outcome.folder / "events.jsonl")
    return [r.event for r in records if isinstance(r.event, kind)]


def test_every_session_finishes_with_the_recorded_tokens(replayed: Outcome) -> None:
    for record, planned in zip(replayed.result.sessions, _planned(replayed), strict=True):
        assert record.error is None
        assert record.sct_s is not None
        assert [t.prompt_tokens for t in record.turns] == [t.prompt_tokens for t in planned.turns]
        assert [t.output_tokens for t in record.turns] == [t.output_tokens for t in planned.turns]
        assert record.sct_s >= (record.ideal_s or 0.0)


def _planned(outcome: Outcome) -> list[TraceSession]:
    return [session(s.session_id, s.arrival_s) for s in outcome.result.sessions]


def test_client_and_engine_agree_on_every_turn(replayed: Outcome) -> None:
    finished = {(e.session_id, e.turn_index): e for e in _events(replayed, ev.TurnFinished)}
    for record in replayed.result.sessions:
        for turn in record.turns:
            event = finished[record.session_id, turn.turn_index]
            assert event.num_prompt_tokens == turn.prompt_tokens
            assert event.num_output_tokens == turn.output_tokens
            assert event.num_cached_tokens == turn.cached_tokens
            assert event.finish_reason == "length"


def test_without_pressure_each_turn_finds_all_whole_blocks_of_the_one_before(
    replayed: Outcome,
) -> None:
    for record, planned in zip(replayed.result.sessions, _planned(replayed), strict=True):
        content, past = layout(planned), []
        for index, turn in enumerate(record.turns):
            found = cached_tokens(content.prompts[index], past, BLOCK_SIZE)
            assert turn.cached_tokens == found
            past.append([*content.prompts[index], content.replies[index]])
        assert record.recomputed_tokens == 0


def test_the_log_has_no_gap_and_every_tool_ran(replayed: Outcome) -> None:
    records = list(read_records(replayed.folder / "events.jsonl"))
    seqs = [record.seq for record in records]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert not [r for r in records if isinstance(r.event, ev.EventsDropped)]
    ended = _events(replayed, ev.ToolFinished)
    assert len(ended) == 9
    assert {e.exit_code for e in ended} == {0}
    reasons = {e.session_id: e.reason for e in _events(replayed, ev.SessionEnded)}
    assert {reasons[s.session_id] for s in replayed.result.sessions} == {"explicit"}


def test_a_client_that_leaves_mid_stream_is_aborted_in_the_engine(replayed: Outcome) -> None:
    left = [e for e in _events(replayed, ev.TurnFinished) if e.session_id == "leaver"]
    assert len(left) == 1
    assert left[0].finish_reason == "abort"
    assert left[0].num_output_tokens < 4000


def test_the_parts_of_a_session_add_up_to_its_time(replayed: Outcome) -> None:
    for record in replayed.result.sessions:
        parts = record.held_s + record.queue_s + record.prefill_s + record.decode_s
        parts += record.tool_wait_s + record.tool_s + record.gap_s
        assert parts == pytest.approx(record.sct_s, rel=0.1)


async def test_a_dead_engine_ends_the_run_with_its_cause_and_keeps_the_rest(
    tmp_path: Path,
) -> None:
    async def kill_engine(running: Running) -> None:
        while running.replay.progress.num_turns_done < 2:
            await asyncio.sleep(0.05)
        for child in psutil.Process(running.server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        await asyncio.Event().wait()

    short, long = session("short", 0.0, num_turns=1), session("long", 0.0, num_turns=60)
    outcome = await run_contestant(
        experiment(short, long), PAPER, tmp_path, port=free_port(), watch=kill_engine
    )
    first, second = read_result(tmp_path / "result.json").sessions
    assert first.sct_s is not None
    assert first.error is None
    assert second.sct_s is None
    assert second.num_turns >= 1
    assert second.error
    assert outcome.result.summary.sessions_failed == 1
    assert outcome.result.replay is not None
    assert "the engine ended" in (tmp_path / "serve.log").read_text()
    assert list(read_records(tmp_path / "events.jsonl"))
