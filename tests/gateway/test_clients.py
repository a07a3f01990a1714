# SPDX-License-Identifier: Apache-2.0
"""The clients that agents are built on see no difference: openai and anthropic, every API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import openai
import pytest

from mars.config import GatewayConfig, KeyConfig, MarsConfig
from mars.gateway import build_app
from mars.testing.engine import serve
from tests.gateway.shapes import ShapedEngine

CHAT: Any = [{"role": "user", "content": "héllo"}]
TOOL: Any = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}


class Clients:
    """Both clients, for one server."""

    def __init__(self, url: str, key: str = "key-a") -> None:
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()


Call = Callable[[Clients], Awaitable[Any]]


async def collected(stream: Any) -> list[Any]:
    return [event.model_dump() async for event in await stream]


async def listed(page: Any) -> list[Any]:
    return (await page).data


CALLS: dict[str, Call] = {
    "chat": lambda c: c.openai.chat.completions.create(model="m", messages=CHAT, tools=[TOOL]),
    "chat stream": lambda c: collected(
        c.openai.chat.completions.create(model="m", messages=CHAT, stream=True)
    ),
    "completions": lambda c: c.openai.completions.create(model="m", prompt="héllo"),
    "completions stream": lambda c: collected(
        c.openai.completions.create(model="m", prompt="héllo", stream=True)
    ),
    "responses": lambda c: c.openai.responses.create(model="m", input="héllo"),
    "responses stream": lambda c: collected(
        c.openai.responses.create(model="m", input="héllo", stream=True)
    ),
    "messages": lambda c: c.anthropic.messages.create(model="m", messages=CHAT, max_tokens=9),
    "messages stream": lambda c: collected(
        c.anthropic.messages.create(model="m", messages=CHAT, max_tokens=9, stream=True)
    ),
    "count tokens": lambda c: c.anthropic.messages.count_tokens(model="m", messages=CHAT),
    "embeddings": lambda c: c.openai.embeddings.create(
        model="m", input=["héllo"], encoding_format="float"
    ),
    "models": lambda c: listed(c.openai.models.list()),
}


@contextlib.asynccontextmanager
async def gateway(
    engine: ShapedEngine, **settings: Any
) -> AsyncIterator[tuple[Clients, Clients, Any]]:
    """Clients of the engine itself, clients of a gateway before it, and that gateway."""
    async with serve(engine.app()) as direct_url:
        config = GatewayConfig(engine_url=direct_url, admission="none", **settings)
        app = build_app(MarsConfig(gateway=config))
        async with serve(app) as url:
            direct, through = Clients(direct_url), Clients(url)
            try:
                yield direct, through, app.state.gateway
            finally:
                await direct.close()
                await through.close()


def sent(engine: ShapedEngine) -> tuple[dict[str, str], bytes]:
    """The one request of a client; the gateway's own carry no key."""
    ((headers, body),) = [
        (h, b) for _, h, b in engine.seen if {"authorization", "x-api-key"} & {*h}
    ]
    engine.seen.clear()
    for own in ("host", "connection", "x-session-id"):
        headers.pop(own, None)
    return headers, body


async def test_a_client_gets_what_the_engine_says_to_what_it_sent() -> None:
    engine = ShapedEngine()
    async with gateway(engine) as (direct, through, _):
        for name, call in CALLS.items():
            expected, wanted = await call(direct), sent(engine)
            got, found = await call(through), sent(engine)
            assert got == expected, name
            assert found == wanted, name


@pytest.mark.parametrize("name", ["chat", "messages stream", "embeddings"])
async def test_a_wrong_key_and_a_limit_are_the_clients_own_errors(name: str) -> None:
    keys = (KeyConfig(name="a", key="key-a", max_requests_per_minute=1),)
    async with gateway(ShapedEngine(), keys=keys) as (_, through, made):
        package: Any = (
            anthropic if name in {"messages", "messages stream", "count tokens"} else openai
        )
        await CALLS[name](through)
        with pytest.raises(package.RateLimitError) as limited:
            await CALLS[name](through)
        assert "max_requests_per_minute" in limited.value.message
        assert limited.value.body["error" if package is anthropic else "type"]
        assert 0 < int(limited.value.response.headers["retry-after"]) <= 30
        url = str(through.openai.base_url).removesuffix("/v1/")
        stranger = Clients(url, "wrong")
        try:
            with pytest.raises(package.AuthenticationError):
                await CALLS[name](stranger)
        finally:
            await stranger.close()
        assert made.tenants.refused["a", "max_requests_per_minute"] == 1


async def test_a_session_whose_engine_is_away_is_the_clients_own_error(free_port: int) -> None:
    away = f"http://127.0.0.1:{free_port}"
    config = GatewayConfig(engine_url=away, engine_wait_s=0, admission="none")
    async with serve(build_app(MarsConfig(gateway=config))) as url:
        clients = Clients(url)
        try:
            with pytest.raises(openai.InternalServerError, match="cannot be reached"):
                await CALLS["chat"](clients)
            with pytest.raises(anthropic.InternalServerError) as caught:
                await CALLS["messages"](clients)
        finally:
            await clients.close()
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": caught.value.body["error"]["message"]},
    }
