# SPDX-License-Identifier: Apache-2.0
"""The replay client against real sockets: a paced engine, alone or behind the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from mars.bench.client import Progress, Replay, ReplaySettings
from mars.bench.toolside import ToolSide, burn_command
from mars.config import GatewayConfig, MarsConfig, TelemetryConfig
from mars.core import events as ev
from mars.gateway import build_app
from mars.telemetry import read_events
from mars.testing.engine import FakeEngine, serve
from mars.traces.content import prompt_segments, reply_segment, tokens
from mars.traces.schema import TraceSession
from tests.bench.conftest import TOOL, session


@contextlib.asynccontextmanager
async def replaying(
    url: str, sessions: list[TraceSession], **settings: Any
) -> AsyncIterator[Replay]:
    async with ToolSide(2, "fifo") as tools:
        yield Replay(sessions, ReplaySettings(url=url, model="m", **settings), tools)


async def replayed(url: str, sessions: list[TraceSession], **settings: Any) -> Replay:
    async with replaying(url, sessions, **settings) as replay:
        await replay.run()
        return replay


def bodies(engine: FakeEngine, session_id: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(r.body) for r in engine.seen if r.session_id == session_id]


def only(answers: dict[str, Response], engine: FakeEngine) -> Starlette:
    """The engine, except that some sessions get another answer to every turn."""

    async def complete(request: Request) -> Response:
        return answers[request.headers["x-session-id"]]

    class Routed(Route):
        def matches(self, scope: Any) -> Any:
            match, child = super().matches(scope)
            headers = dict(scope["headers"])
            is_ours = headers.get(b"x-session-id", b"").decode() in answers
            return (match, child) if is_ours else (type(match).NONE, {})

    routed = Routed("/v1/completions", complete, methods=["POST"])
    return Starlette(routes=[routed, Mount("/", engine.app())])


async def test_every_turn_is_sent_with_its_recorded_content(sessions: list[TraceSession]) -> None:
    engine = FakeEngine()
    async with serve(engine.app()) as url:
        replay = await replayed(url, sessions)
    for one in sessions:
        sent = bodies(engine, one.session_id)
        assert [b["max_tokens"] for b in sent] == [t.output_tokens for t in one.turns]
        for index, body in enumerate(sent):
            reply = reply_segment(one, index)
            assert body["prompt"] == tokens(prompt_segments(one, index))
            assert body["vllm_xargs"] == {
                "mars_reply_tokens": reply.count,
                "mars_reply_seed": reply.content_id,
                "mars_reply_start": reply.start,
            }
    assert [r.num_turns for r in replay.records()] == [3, 3, 3]
    assert [r.output_tokens for r in replay.records()] == [4 + 5 + 6] * 3


async def test_the_loop_is_closed_by_reply_tool_and_gap(tmp_path: Path) -> None:
    engine = FakeEngine()
    log = tmp_path / "events.jsonl"
    async with serve(engine.app()) as engine_url:
        config = MarsConfig(
            gateway=GatewayConfig(engine_url=engine_url, admission="none"),
            telemetry=TelemetryConfig(events_path=str(log)),
        )
        async with serve(build_app(config)) as url:
            replay = await replayed(url, [session("s", num_turns=4)])
    seen = [e for e in read_events(log) if isinstance(e, ev.SessionEvent)]
    kinds = [
        type(e) for e in sorted(seen, key=lambda e: e.time) if not isinstance(e, ev.SessionHeld)
    ]
    per_turn = [
        ev.TurnSubmitted, ev.FirstToken, ev.TurnFinished,
        ev.ToolQueued, ev.ToolStarted, ev.ToolFinished,
    ]  # fmt: skip
    assert kinds == [ev.SessionArrived, ev.SessionAdmitted, *per_turn * 4, ev.SessionEnded]
    finished = [e for e in seen if isinstance(e, ev.ToolFinished)]
    assert all(e.exit_code == 0 and e.duration_s >= TOOL.duration_s for e in finished)
    turns = replay.records()[0].turns
    gaps = [b.sent_s - a.end_s for a, b in itertools.pairwise(turns) if a.end_s is not None]
    assert all(gap >= TOOL.duration_s + 0.01 for gap in gaps)
    ends = [e for e in seen if isinstance(e, ev.SessionEnded)]
    assert [e.reason for e in ends] == ["explicit"]
    assert replay.tools.num_unposted == replay.tools.num_failed == 0
    assert (replay.tools.stretch or 0.0) >= 1.0


async def test_an_error_of_one_session_leaves_the_others_alone(
    sessions: list[TraceSession],
) -> None:
    refused = Response('{"error":{"message":"too long for this model"}}', 400)
    async with serve(only({"s1": refused}, FakeEngine())) as url:
        replay = await replayed(url, sessions)
    first, second, third = replay.records()
    assert second.error == "turn 0: HTTP 400: too long for this model"
    assert (second.sct_s, second.num_turns) == (None, 0)
    assert first.sct_s is not None
    assert third.sct_s is not None
    assert replay.progress.num_sessions_failed == 1


async def test_a_broken_stream_ends_the_session_with_its_cause() -> None:
    engine = FakeEngine(break_after=2)
    async with serve(engine.app()) as url:
        replay = await replayed(url, [session("s")])
    record = replay.records()[0]
    assert record.error is not None
    assert record.error.startswith("turn 0:")
    assert record.turns[0].error in record.error


async def test_too_few_tokens_are_an_error_not_a_fast_turn() -> None:
    body = 'data: {"choices":[],"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    short = Response(body, media_type="text/event-stream")
    async with serve(only({"s": short}, FakeEngine())) as url:
        replay = await replayed(url, [session("s")])
    assert "1 output tokens instead of 4" in (replay.records()[0].error or "")


async def test_a_turn_told_to_come_back_is_asked_again() -> None:
    engine, tries = FakeEngine(), itertools.count()

    async def complete(request: Request) -> Response:
        if next(tries) < 2:
            return Response(status_code=503, headers={"Retry-After": "0"})
        return Response(
            'data: {"choices":[{}],"usage":{"completion_tokens":4}}\n\ndata: [DONE]\n\n'
        )

    route = Route("/v1/completions", complete, methods=["POST"])
    async with serve(Starlette(routes=[route, Mount("/", engine.app())])) as url:
        replay = await replayed(url, [session("s", num_turns=1)])
    assert replay.records()[0].error is None
    assert next(tries) == 3


async def test_without_a_server_the_replay_ends_at_once_and_says_why(
    sessions: list[TraceSession], free_port: int
) -> None:
    late = session("late", arrival_s=3600.0)
    replay = await replayed(f"http://127.0.0.1:{free_port}", [*sessions, late])
    assert "refuses connections" in (replay.stop_reason or "")
    assert all("refuses connections" in (r.error or "") for r in replay.records())


async def test_an_interrupted_replay_keeps_what_it_has() -> None:
    engine = FakeEngine()
    sessions = [session("short", num_turns=1), session("long", num_turns=80)]
    async with (
        asyncio.timeout(60),
        serve(engine.app()) as url,
        replaying(url, sessions) as replay,
    ):
        task = asyncio.create_task(replay.run())
        while not replay.progress.num_sessions_done:
            await asyncio.sleep(0.01)
        engine.pause()
        await engine.until(lambda e: len(e.seen) > len(e.finished))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.resume()
    short, long = replay.records()
    assert short.sct_s is not None
    assert short.error is None
    assert (long.sct_s, long.error) == (None, "interrupted")
    assert long.num_turns == len(engine.finished) - 1


async def test_times_are_reported_on_the_models_clock() -> None:
    engine = FakeEngine()
    async with serve(engine.app()) as url:
        replay = await replayed(url, [session("s", num_turns=2, arrival_s=0.05)], time_scale=4.0)
    record = replay.records()[0]
    assert record.sct_s is not None
    real_s = replay.ended_at - replay.started_at
    assert record.turns[0].sent_s >= 0.05
    assert record.sct_s >= 2 * TOOL.duration_s + 0.01
    assert record.arrival_s + record.sct_s <= real_s / 4.0


def test_a_dilated_tool_takes_longer_but_no_more_cpu() -> None:
    plain, slow = burn_command(TOOL, TOOL.duration_s), burn_command(TOOL, 4 * TOOL.duration_s)
    at = plain.index("--wall-s") + 1
    assert (plain[at], slow[at]) == ("0.0200", "0.0800")
    assert plain[:at] == slow[:at]


def test_the_time_left_follows_the_rate_of_turns() -> None:
    progress = Progress(num_sessions=2, num_turns=10, started_at=100.0)
    assert progress.left_s(105.0) is None
    progress.num_turns_done = 4
    assert progress.left_s(108.0) == pytest.approx(12.0)
