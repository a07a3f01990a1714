# SPDX-License-Identifier: Apache-2.0
from collections.abc import AsyncIterator

import aiohttp
import pytest

from mars.bench.agents.tap import Tap
from mars.testing.engine import FakeEngine, serve
from mars.testing.server import free_port


@pytest.fixture
async def tap() -> AsyncIterator[Tap]:
    engine = FakeEngine(num_tokens=3)
    async with serve(engine.app()) as url:
        made = Tap(free_port(), int(url.rpartition(":")[2]))
        await made.open()
        yield made
        await made.close()


async def test_requests_are_written_down_and_pass_unchanged(tap: Tap) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{tap.port}") as http:
        for index in range(2):  # on one connection
            body = {"stream": True, "messages": [{"role": "user", "content": f"é{index}"}]}
            headers = {"X-Session-ID": f"s{index}"}
            async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert [request.headers["x-session-id"] for request in tap.requests] == ["s0", "s1"]
    assert b"\\u00e91" in tap.requests[1].body
    assert b"data: [DONE]" in tap.requests[1].reply


async def test_a_closed_tap_refuses_and_can_be_opened_again(tap: Tap) -> None:
    await tap.close()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{tap.port}") as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/health")
        await tap.open()
        async with http.get("/health") as response:
            assert response.status == 200
