# SPDX-License-Identifier: Apache-2.0
"""What is no proper request gets an answer in the envelope, and the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import Protocol
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from mars.config import GatewayConfig, MarsConfig
from mars.core.policy import BaseAdmission
from mars.gateway import build_app, listen, make_server
from mars.gateway.wire import on_h11, protocol_with
from mars.testing.engine import FakeEngine, serve
from tests.gateway.conftest import TIMEOUT_S, Site, make_site

LIMIT = 4096
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"


@contextlib.asynccontextmanager
async def gateway(protocol: type[Protocol]) -> AsyncIterator[int]:
    """The port of a gateway that speaks through ``protocol``."""
    async with serve(FakeEngine().app()) as engine_url:
        settings = GatewayConfig(port=0, engine_url=engine_url, max_header_bytes=LIMIT)
        sock = listen(settings)
        server = make_server(build_app(MarsConfig(gateway=settings)), settings)
        server.config.http = protocol
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def answer(port: int, sent: bytes) -> tuple[bytes, Any]:
    """Status line and JSON body of what comes back before the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await writer.drain()
        async with asyncio.timeout(TIMEOUT_S):
            got = await reader.read()
    finally:
        writer.close()
    head, _, body = got.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], msgspec.json.decode(body)


@pytest.mark.parametrize("protocol", [protocol_with, on_h11])
async def test_heads_are_bounded_and_malformed_ones_refused(protocol: Any) -> None:
    async with gateway(protocol(lambda: LIMIT)) as port:
        endless = HEAD + b"X-Long: " + b"a" * 100_000
        many = HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(2000))
        for sent in (endless, many):
            status, body = await answer(port, sent)
            assert b"431" in status
            assert "gateway.max_header_bytes" in body["error"]["message"]
        status, body = await answer(port, b"this is not HTTP\r\n\r\n")
        assert b"400" in status
        assert body["error"]["type"] == "invalid_request_error"
        status, body = await answer(port, HEAD + b"Connection: close\r\n\r\n")
        assert b"200" in status


async def test_a_whole_head_that_is_too_large_is_refused_whoever_parses_it() -> None:
    async with make_site(max_header_bytes=2000) as site:
        headers = {"X-Long": "a" * 2000}
        url = f"{site.url}/v1/messages"
        async with site.client.post(url, json={}, headers=headers) as response:
            assert response.status == 431
            assert (await response.json())["type"] == "error"
        assert site.engine.seen == []
        assert (await site.chat("s"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v2/chat/completions", 404),
        ("GET", "/mars/v1/nothing", 404),
        ("PUT", "/mars/v1/state", 405),
        ("GET", "/mars/v1/reload", 405),
        ("GET", "/v1/nothing", 404),
    ],
)
async def test_unknown_paths_say_so(site: Site, method: str, path: str, status: int) -> None:
    async with site.client.request(method, site.url + path) as response:
        assert response.status == status
        if not path.startswith("/v1/"):  # the engine answers those
            error = (await response.json())["error"]
            assert error["code"] == status
            assert path in error["message"]


class Broken(BaseAdmission):
    """A policy with a defect."""

    def admit(self, *asked: Any) -> list[str]:
        raise RuntimeError("a secret of ours")


async def test_a_defect_is_a_500_in_the_envelope_and_is_counted() -> None:
    async with make_site(policy=Broken()) as site:
        async with site.client.post(f"{site.url}/v1/completions", json={}) as response:
            assert response.status == 500
            assert (await response.json())["error"]["message"] == (
                "the gateway failed; its log says why"
            )
        async with site.client.get(f"{site.url}/metrics") as response:
            assert 'status="500"} 1.0' in await response.text()
        async with site.client.get(f"{site.url}/v1/models") as response:
            assert response.status == 200
