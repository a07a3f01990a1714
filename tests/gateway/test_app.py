# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mars.core import events as ev
from mars.telemetry.zmq_stream import ControlReceiver, EventPublisher
from mars.testing.engine import FakeEngine
from tests.gateway.conftest import TIMEOUT_S, Site, make_site

CALL = {"session_id": "s", "tool_call_id": "c1", "tool_name": "bash"}


def tool_events(**more: Any) -> list[dict[str, Any]]:
    now = time.monotonic()
    end = {"duration_s": 2.0, "cpu_seconds": 1.5, "peak_bytes": 10, "exit_code": 0}
    return [
        {"kind": "tool_queued", "time": now, **CALL} | more,
        {"kind": "tool_started", "time": now + 1, "queued_s": 1.0, **CALL} | more,
        {"kind": "tool_finished", "time": now + 3, **end, **CALL} | more,
    ]


async def post_events(site: Site, events: Any) -> tuple[int, Any]:
    async with site.client.post(f"{site.url}/mars/v1/events", json=events) as response:
        return response.status, await response.json()


async def test_health_is_the_engines_health(site: Site) -> None:
    async with site.client.get(f"{site.url}/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    site.engine.is_healthy = False
    async with site.client.get(f"{site.url}/health") as response:
        assert response.status == 503
        assert "answers /health with 503" in (await response.json())["error"]["message"]


async def test_metrics_have_the_published_names_and_never_a_session_id(site: Site) -> None:
    await site.chat("secret-session")
    await post_events(site, tool_events())
    async with site.client.get(f"{site.url}/metrics") as response:
        text = await response.text()
    for name in (
        "mars:sessions_active{",
        "mars:sessions_held{",
        "mars:admission_window{",
        "mars:admission_wait_seconds_bucket{",
        "mars:kv_blocks_retained{",
        'mars:kv_retention_outcomes_total{engine="0",model_name="fake-model",outcome="hit"}',
        "mars:tool_queue_seconds_bucket{",
        "mars:tool_run_seconds_sum{",
        "mars:tool_cpu_seconds_total{",
        'question="admit"',
        "mars:events_dropped_total{",
    ):
        assert name in text, name
    assert 'mars:tool_run_seconds_sum{engine="0",model_name="fake-model"} 2.0' in text
    assert 'mars:tool_cpu_seconds_total{engine="0",model_name="fake-model"} 1.5' in text
    assert 'mars:requests_total{engine="0",model_name="fake-model",status="200"} 1.0' in text
    assert "secret" not in text
    assert "vllm:" not in text


async def test_a_session_without_an_id_is_one_turn(site: Site) -> None:
    await site.chat()
    ended = await site.event("session_ended")
    assert isinstance(ended, ev.SessionEnded)
    assert (ended.reason, ended.num_turns) == ("single_turn", 1)
    assert ended.session_id == site.engine.seen[0].session_id
    assert (await site.state())["num_active"] == 0


async def test_a_session_ends_when_its_client_says_so(site: Site) -> None:
    await site.chat("by-post")
    async with site.client.post(f"{site.url}/mars/v1/sessions/by-post/end") as response:
        assert response.status == 200
    await site.event("session_ended", session_id="by-post", reason="explicit", num_turns=1)
    async with site.client.post(f"{site.url}/mars/v1/sessions/by-post/end") as response:
        assert response.status == 404
    await site.chat("by-query")
    url = f"{site.url}/finish_session?session_id=by-query"
    async with site.client.post(url) as response:
        assert response.status == 200
    headers = {"X-Session-ID": "by-header", "X-Dynamo-Session-Final": "true"}
    url = f"{site.url}/v1/chat/completions"
    async with site.client.post(url, json={}, headers=headers) as response:
        await response.read()
    await site.event("session_ended", session_id="by-header", reason="explicit")


async def test_the_path_names_the_session(site: Site) -> None:
    async with site.client.post(f"{site.url}/s/task-1/v1/chat/completions", json={}) as response:
        assert response.status == 200
        await response.read()
    assert site.engine.seen[0].path == "/v1/chat/completions"
    assert site.engine.seen[0].session_id == "task-1"


async def test_between_turns_a_session_is_acting(site: Site) -> None:
    site.engine.pause()
    running = site.start_chat("s")
    await site.until(lambda e: len(e.seen) == 1)
    assert (await site.state())["active"][0]["activity"] == "reasoning"
    site.engine.resume()
    await running
    await site.event("turn_finished", session_id="s")
    assert (await site.state())["active"][0]["activity"] == "acting"


async def test_posted_tool_events_are_part_of_the_stream(site: Site) -> None:
    await site.chat("s")
    queued, started, finished = tool_events()
    status, answer = await post_events(site, [queued, started])
    assert (status, answer["accepted"]) == (200, 2)
    active = (await site.state())["active"][0]
    assert (active["phase"], active["tool_name"]) == ("tool", "bash")
    await post_events(site, [finished])
    active = (await site.state())["active"][0]
    assert (active["phase"], active["tool_name"]) == ("idle", None)


@pytest.mark.parametrize(
    ("posted", "named"),
    [
        ({"kind": "tool_queued"}, "list"),
        ([{"kind": "tool_queued", "time": 1.0}], "session_id"),
        ([{"time": 1.0}], "kind"),
        ([*tool_events(), {"kind": "tool_started"}], "tool_started"),
    ],
)
async def test_malformed_events_are_refused_whole(site: Site, posted: Any, named: str) -> None:
    status, answer = await post_events(site, posted)
    assert status == 400
    assert named in answer["error"]["message"]
    assert site.events("tool_queued") == []


async def test_server_sent_events_replay_and_go_on(site: Site) -> None:
    await site.chat("before")
    url = f"{site.url}/mars/v1/events"
    async with site.client.get(url, params={"since": 0}) as response:
        assert response.content_type == "text/event-stream"
        await post_events(site, tool_events(session_id="after"))
        seqs, kinds = [], []
        async with asyncio.timeout(TIMEOUT_S):
            while "tool_finished" not in kinds:
                block = (await response.content.readuntil(b"\n\n")).decode()
                if block.startswith(":"):
                    continue
                seq, payload = block.strip().split("\n")
                seqs.append(int(seq.removeprefix("id: ")))
                kinds.append(msgspec.json.decode(payload.removeprefix("data: "))["kind"])
    assert seqs == list(range(1, len(seqs) + 1))
    assert "session_arrived" in kinds
    async with site.client.get(url, params={"since": "x"}) as response:
        assert response.status == 400


@pytest.fixture
async def linked(tmp_path: Path) -> AsyncIterator[tuple[Site, EventPublisher, ControlReceiver]]:
    """A site whose engine has the plug-in: events come from it, commands go to it."""
    events, control = f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/control"
    publisher, receiver = EventPublisher(events), ControlReceiver(control)
    telemetry = {"events_endpoint": events, "control_endpoint": control}
    try:
        async with make_site(telemetry=telemetry, telemetry_stale_s=0.5) as site:
            yield site, publisher, receiver
    finally:
        publisher.close()
        receiver.close()


async def receive(receiver: ControlReceiver, count: int) -> list[dict[str, Any]]:
    got: list[dict[str, Any]] = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(got) < count:
            got += receiver.poll()
            await asyncio.sleep(0.005)
    return got


async def test_tools_and_ends_reach_the_engine(
    linked: tuple[Site, EventPublisher, ControlReceiver],
) -> None:
    site, _, receiver = linked
    await site.chat("s")
    queued, started, finished = tool_events()
    await post_events(site, [queued, started, finished])
    site.gateway.admission.end("s", "explicit")
    commands = await receive(receiver, 4)
    assert [c["op"] for c in commands] == [
        "tool_started",
        "tool_started",
        "tool_finished",
        "session_end",
    ]
    assert {c["session_id"] for c in commands} == {"s"}
    assert commands[1]["queued_at"] == pytest.approx(queued["time"])
    assert commands[1]["expected_return_at"] >= started["time"]
    assert commands[2]["time"] == finished["time"]


async def test_of_parallel_tools_only_the_last_end_is_the_tools_end(
    linked: tuple[Site, EventPublisher, ControlReceiver],
) -> None:
    site, _, receiver = linked
    one, two = tool_events(), tool_events(tool_call_id="c2")
    await post_events(site, [one[0], two[0], one[2], two[2]])
    commands = await receive(receiver, 3)
    assert [c["op"] for c in commands] == ["tool_started", "tool_started", "tool_finished"]
    assert commands[2]["time"] == two[2]["time"]


def engine_sample(now: float) -> ev.EngineSampled:
    return ev.EngineSampled(
        time=now,
        kv_blocks_total=100,
        kv_blocks_free=25,
        kv_blocks_retained=5,
        block_size=16,
        num_running=2,
        num_waiting=1,
        num_steps=9,
        busy_s=1.0,
        computed_tokens=1000,
        recomputed_tokens=0,
        prefix_queries_tokens=0,
        prefix_hits_tokens=0,
        preemptions=0,
        shrunk_chunks=0,
    )


async def test_engine_events_make_the_load_and_their_absence_an_alarm(
    linked: tuple[Site, EventPublisher, ControlReceiver],
) -> None:
    site, publisher, _ = linked
    async with asyncio.timeout(TIMEOUT_S):
        while not site.events("engine_sampled"):
            publisher.send([engine_sample(time.monotonic())])
            await asyncio.sleep(0.02)
        state = await site.state()
        assert (state["load"]["kv_blocks_free"], state["is_stale"]) == (25, False)
        while not (state := await site.state())["is_stale"]:
            await asyncio.sleep(0.05)
    assert state["load"]["kv_blocks_free"] is None  # not known, not zero
    assert "stale" in state["alarms"][0]


async def test_with_the_plug_in_the_gateway_does_not_report_turns_itself(
    linked: tuple[Site, EventPublisher, ControlReceiver],
) -> None:
    site, publisher, _ = linked
    await site.chat("s")
    assert site.events("turn_submitted") == []
    finished = ev.TurnFinished(
        time=time.monotonic(),
        session_id="s",
        request_id="r",
        turn_index=0,
        num_prompt_tokens=500,
        num_output_tokens=20,
        num_cached_tokens=0,
        num_recomputed_tokens=0,
        num_preemptions=0,
        freed_blocks=0,
        retained_blocks=0,
        finish_reason="stop",
    )
    async with asyncio.timeout(TIMEOUT_S):
        while not site.events("turn_finished"):
            publisher.send([finished])
            await asyncio.sleep(0.02)
    assert (await site.state())["active"][0]["context_tokens"] == 520


async def test_stock_vllms_metrics_make_the_load() -> None:
    async with make_site(FakeEngine(kv_usage=0.75)) as site:
        async with asyncio.timeout(TIMEOUT_S):
            while (await site.state())["load"]["kv_blocks_total"] is None:
                await asyncio.sleep(0.02)
        load = (await site.state())["load"]
        assert (load["kv_blocks_total"], load["kv_blocks_free"]) == (1000, 250)
        assert load["computed_tokens"] is None


async def test_a_missing_metric_is_an_alarm_that_names_it() -> None:
    engine = FakeEngine(lacking=frozenset({"vllm:kv_cache_usage_perc"}))
    async with make_site(engine) as site:
        async with asyncio.timeout(TIMEOUT_S):
            while not (state := await site.state())["alarms"]:
                await asyncio.sleep(0.02)
        assert "vllm:kv_cache_usage_perc" in state["alarms"][0]
        assert state["load"]["kv_blocks_free"] is None
        assert (await site.chat("s"))[0] == 200  # serving goes on
