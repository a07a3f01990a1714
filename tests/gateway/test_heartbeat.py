# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from mars.gateway.heartbeat import heartbeat_of
from tests.gateway.conftest import TIMEOUT_S, Site, make_site


@pytest.fixture
async def full() -> AsyncIterator[Site]:
    """A site whose one place is taken by session ``a``, with quick heartbeats."""
    async with make_site(admission="cap:1", keepalive_s=0.01, hold_budget_s=0.02) as site:
        await site.chat("a")
        yield site


async def held_request(
    site: Site, path: str, *, stream: bool, **headers: str
) -> aiohttp.ClientResponse:
    """A request of a held session, once its head and a first heartbeat are there."""
    url, headers = f"{site.url}/v1/{path}", {"X-Session-ID": "held", **headers}
    async with asyncio.timeout(TIMEOUT_S):
        return await site.client.post(url, json={"stream": stream}, headers=headers)


@pytest.mark.parametrize(
    ("path", "stream", "sign"),
    [
        ("chat/completions", True, b": keep-alive\n\n"),
        ("completions", True, b": keep-alive\n\n"),
        ("chat/completions", False, b" \n"),
        ("responses", False, b" \n"),
        ("responses", True, b": keep-alive\n\n"),
    ],
)
async def test_a_held_client_gets_signs_of_life_beyond_any_budget_then_the_reply(
    full: Site, path: str, stream: bool, sign: bytes
) -> None:
    async with await held_request(full, path, stream=stream) as response:
        assert response.status == 200
        for _ in range(5):  # more than the budget holds
            assert await response.content.readexactly(len(sign)) == sign
        assert [r.session_id for r in full.engine.seen] == ["a"]
        full.gateway.admission.end("a", "explicit")
        content = await response.read()
    if stream:
        assert content.replace(sign, b"").endswith(b"data: [DONE]\n\n")
    else:
        assert msgspec.json.decode(content)["id"] == "cmpl-fake"


async def test_codex_sees_the_reply_in_progress(full: Site) -> None:
    agent = {"User-Agent": "codex_exec/0.169.0"}
    async with await held_request(full, "responses", stream=True, **agent) as response:
        event, data = (await response.content.readuntil(b"\n\n")).strip().split(b"\n")
    assert event == b"event: response.in_progress"
    told = msgspec.json.decode(data.removeprefix(b"data: "))
    assert (told["type"], told["response"]["status"]) == ("response.in_progress", "in_progress")


async def test_anthropic_clients_get_a_status_when_the_budget_is_spent(full: Site) -> None:
    async with await held_request(full, "messages", stream=True) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "20")


@pytest.mark.parametrize("stream", [True, False])
async def test_after_heartbeats_an_error_is_told_in_band(full: Site, stream: bool) -> None:
    async with await held_request(full, "chat/completions", stream=stream) as response:
        full.gateway.drain()
        content = await response.read()
    start = content.index(b"{")
    error = msgspec.json.decode(content[start:].strip())
    assert "shutting down" in error["error"]["message"]


async def test_a_client_that_leaves_between_heartbeats_is_waited_for_no_longer(full: Site) -> None:
    response = await held_request(full, "chat/completions", stream=True)
    response.close()
    async with asyncio.timeout(TIMEOUT_S):
        while full.gateway.admission.places()[0].waiters:
            await asyncio.sleep(0.01)
    full.gateway.admission.end("a", "explicit")
    assert full.gateway.admission.num_held == 1  # nobody to let in


def test_only_codex_gets_events_of_a_response_that_never_comes() -> None:
    codex = heartbeat_of(b"/v1/responses", is_stream=True, is_codex=True)
    other = heartbeat_of(b"/v1/responses", is_stream=True)
    assert codex is not None
    assert other is not None
    assert codex.chunk.startswith(b"event: response.in_progress\n")
    assert other.chunk == b": keep-alive\n\n"
