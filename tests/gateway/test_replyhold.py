# SPDX-License-Identifier: Apache-2.0
"""Replies that ask for tools wait while the CPUs are swamped: delayed, never changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mars.core import events as ev
from mars.gateway.replies import CalledTool
from mars.testing.engine import serve
from tests.gateway.conftest import TIMEOUT_S, Site, make_site

TOOLS = [{"id": "call-held", "name": "bash"}]
RUNNING = CalledTool("call-a", "bash")


def host(site: Site, pressure: float) -> None:
    """A sample of the host's load, with one core."""
    sample = ev.HostSampled(
        time=site.gateway.clock(),
        cpu_cores=1,
        cpu_usage=1.0,
        cpu_pressure=pressure,
        tool_slots=1,
        tools_running=1,
        tools_queued=0,
        tool_queue_delay_s=0.0,
    )
    site.gateway.hub.emit(sample, "tools")


@contextlib.asynccontextmanager
async def swamped_site(**options: Any) -> AsyncIterator[Site]:
    """The one slot is taken by a tool of session ``a``, and the CPUs are swamped."""
    async with make_site(telemetry_stale_s=TIMEOUT_S, **options) as site:
        site.gateway.turns.tools.replied("a", [RUNNING])
        host(site, 0.9)
        yield site


@pytest.fixture
async def swamped() -> AsyncIterator[Site]:
    async with swamped_site() as site:
        yield site


def end_tool(site: Site) -> None:
    """Session ``a`` brings the result of its tool."""
    site.gateway.turns.tools.requested("a", b"call-a")


async def kept(site: Site) -> None:
    """Return when a reply is kept back."""
    async with asyncio.timeout(TIMEOUT_S):
        while not site.gateway.turns.hold.num_kept:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_reply_with_a_tool_call_waits_for_the_slot_and_is_the_same(
    swamped: Site, is_stream: bool
) -> None:
    wanted: dict[str, Any] = {"stream": is_stream, "fake_tools": TOOLS, "messages": []}
    async with swamped.client.post(
        f"{swamped.engine_url}/v1/chat/completions", json=wanted
    ) as response:
        direct = await response.read()
    task = swamped.start_chat("b", **wanted)
    await kept(swamped)
    await swamped.event("tool_queued", session_id="b", tool_call_id="call-held")
    assert not task.done()
    end_tool(swamped)
    assert await task == (200, direct)
    await swamped.event("tool_started", session_id="b")
    assert swamped.events("tool_started")[-1].queued_s > 0
    # The turn had ended before: its reply waited, not the engine.
    kinds = [
        r.event.kind
        for r in swamped.gateway.hub.bus.reader(since=0).read(1000)
        if getattr(r.event, "session_id", "") == "b"
    ]
    assert kinds.index("turn_finished") < kinds.index("tool_queued") < kinds.index("tool_started")


async def test_text_streams_on_until_the_call_comes(swamped: Site) -> None:
    body = {"stream": True, "fake_tools": TOOLS, "fake_text": "thinking"}
    url, headers = f"{swamped.url}/v1/chat/completions", {"X-Session-ID": "b"}
    async with swamped.client.post(url, json=body, headers=headers) as response:
        assert b"thinking" in await response.content.readuntil(b"\n\n")
        await kept(swamped)
        end_tool(swamped)
        assert b"call-held" in await response.read()


async def test_replies_without_tools_and_relieved_cpus_do_not_wait(swamped: Site) -> None:
    assert (await swamped.chat("b"))[0] == 200
    task = swamped.start_chat("c", fake_tools=TOOLS)
    await kept(swamped)
    host(swamped, 0.0)
    assert (await task)[0] == 200


async def test_a_client_that_leaves_takes_its_queued_tool_with_it(swamped: Site) -> None:
    task = swamped.start_chat("b", fake_tools=TOOLS)
    await kept(swamped)
    task.cancel()
    await swamped.event("tool_finished", session_id="b", tool_call_id="call-held")
    assert swamped.gateway.turns.hold.num_kept == 0
    assert not [e for e in swamped.events("tool_started") if e.session_id == "b"]


async def test_patience_bounds_the_wait() -> None:
    async with swamped_site(tool_hold_s=0.05) as swamped:
        assert (await swamped.chat("b", fake_tools=TOOLS))[0] == 200


async def test_the_setting_off_keeps_nothing_back() -> None:
    async with swamped_site(hold_tool_replies="off") as site:
        assert (await site.chat("b", fake_tools=TOOLS))[0] == 200


async def test_reported_tools_queue_in_their_runtime_and_not_here(swamped: Site) -> None:
    queued = ev.ToolQueued(
        time=swamped.gateway.clock(), session_id="b", tool_call_id="own", tool_name="bash"
    )
    swamped.gateway.hub.emit(queued, "tools")
    assert (await swamped.chat("b", fake_tools=TOOLS))[0] == 200


ITEM = {"type": "function_call", "call_id": "call-held", "name": "bash", "arguments": "{}"}
BLOCK = {"type": "tool_use", "id": "call-held", "name": "bash", "input": {}}
FORMS: dict[str, tuple[list[Any], Any]] = {
    "responses": (
        [
            {"type": "response.output_text.delta", "delta": "thinking"},
            {"type": "response.output_item.done", "item": ITEM},
            {"type": "response.completed", "response": {"id": "r", "output": [ITEM]}},
        ],
        {"object": "response", "id": "r", "output": [ITEM]},
    ),
    "messages": (
        [
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "thinking"}},
            {"type": "content_block_start", "index": 1, "content_block": BLOCK},
            {"type": "message_stop"},
        ],
        {"type": "message", "content": [{"type": "text", "text": "thinking"}, BLOCK]},
    ),
}
"""API -> events of its stream, the text first, and its whole reply."""


def parts(api: str) -> list[bytes]:
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in FORMS[api][0]]


async def scripted(request: Request) -> Response:
    """A reply with a tool call, in the form of the API that is asked."""
    api = request.url.path.removeprefix("/v1/")
    if not json.loads(await request.body())["stream"]:
        return Response(json.dumps(FORMS[api][1]), media_type="application/json")

    async def told() -> AsyncIterator[bytes]:
        for part in parts(api):
            yield part

    return StreamingResponse(told(), media_type="text/event-stream")


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("api", FORMS)
async def test_every_api_is_kept_back_and_comes_byte_for_byte(api: str, is_stream: bool) -> None:
    app = Starlette(routes=[Route("/v1/{rest:path}", scripted, methods=["POST"])])
    async with serve(app) as url, swamped_site(engine_url=url) as site:
        wanted = {"stream": is_stream}
        posted = site.client.post(f"{site.url}/v1/{api}", json=wanted)
        asking = asyncio.ensure_future(posted)
        await kept(site)
        async with await asking as response:
            end_tool(site)
            content = await response.read()
        expected = b"".join(parts(api)) if is_stream else json.dumps(FORMS[api][1]).encode()
        assert content == expected
