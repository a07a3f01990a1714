# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from mars.testing.engine import FakeEngine
from tests.gateway.conftest import Site, make_site

GENERATING = ["chat/completions", "completions", "responses", "messages"]


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_replies_are_the_engines_byte_for_byte(
    site: Site, path: str, is_stream: bool
) -> None:
    body = b'{"stream": %s, "prompt":"x" , "unknown_field": {"a": [1.10, 1e3]}}' % (
        b"true" if is_stream else b"false"
    )
    replies = []
    for base in (site.engine_url, site.url):
        url = f"{base}/v1/{path}?a=%20b&a=c"
        async with site.client.post(url, data=body, headers={"X-Mine": "é"}) as response:
            replies.append((response.status, response.headers, await response.read()))
    (status, headers, content), (gateway_status, gateway_headers, gateway_content) = replies
    assert (gateway_status, gateway_content) == (status, content)
    assert gateway_headers["content-type"] == headers["content-type"]
    assert gateway_headers["x-engine"] == "fake"
    direct, through = site.engine.seen
    assert (through.body, through.query, through.path) == (body, "a=%20b&a=c", f"/v1/{path}")
    assert through.headers["x-mine"] == direct.headers["x-mine"]


async def test_tokens_arrive_one_by_one_not_at_the_end(site: Site) -> None:
    site.engine.pause()
    url = f"{site.url}/v1/chat/completions"
    async with site.client.post(url, json={"stream": True}) as response:
        assert response.status == 200  # the head has come although no token has
        site.engine.resume()
        first = await response.content.readuntil(b"\n\n")
        assert "é0".encode() in first
        await response.read()


async def test_the_engine_is_told_the_session_and_no_hop_by_hop_header(site: Site) -> None:
    headers = {
        "x-litellm-session-id": "run-7",
        "Connection": "keep-alive, X-Only-Here",
        "X-Only-Here": "1",
        "TE": "trailers",
        "Authorization": "Bearer mine",
        "Accept-Encoding": "gzip",
    }
    url = f"{site.url}/v1/chat/completions"
    async with site.client.post(url, json={}, headers=headers) as response:
        await response.read()
    seen = site.engine.seen[0].headers
    assert seen["x-session-id"] == "run-7"
    assert seen["authorization"] == "Bearer mine"
    assert seen["accept-encoding"] == "gzip"
    assert "te" not in seen
    assert "x-only-here" not in seen


async def test_a_client_that_leaves_mid_stream_stops_its_request_and_no_other(site: Site) -> None:
    site.engine.pause()
    leaving, staying = site.start_chat("leaves"), site.start_chat("stays")
    await site.until(lambda e: len(e.seen) == 2)
    leaving.cancel()
    await site.until(lambda e: [r.session_id for r in e.cancelled] == ["leaves"])
    site.engine.resume()
    status, content = await staying
    assert status == 200
    assert content.endswith(b"data: [DONE]\n\n")
    await site.event("turn_finished", session_id="leaves", finish_reason="abort")
    await site.event("turn_finished", session_id="stays", finish_reason="stop")
    assert site.gateway.turns.num_open == 0


async def test_paths_that_generate_nothing_pass_without_a_session(site: Site) -> None:
    async with site.client.get(f"{site.url}/v1/models") as response:
        assert (await response.json())["data"][0]["id"] == "fake-model"
    async with site.client.post(f"{site.url}/v1/embeddings", json={"input": "x"}) as response:
        assert response.status == 200
    async with site.client.get(f"{site.url}/v1/nothing") as response:
        assert response.status == 404
    assert site.events("session_arrived") == []


@pytest.mark.parametrize(
    "body", [b'{"messages": [', b"[]", b"", b'{"temperature": NaN}', '{"a": 1}'.encode("utf-16")]
)
async def test_what_is_no_json_object_is_refused_before_an_engine_can_be_laxer(
    site: Site, body: bytes
) -> None:
    for path in ("chat/completions", "%63hat/completions"):
        async with site.client.post(f"{site.url}/v1/{path}", data=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert site.engine.seen == []
    assert (await site.chat("next"))[0] == 200


async def test_a_dead_engine_is_named_with_what_to_do(free_port: int) -> None:
    away = f"http://127.0.0.1:{free_port}"
    async with make_site(engine_url=away, engine_wait_s=0) as site:
        url = f"{site.url}/v1/chat/completions"
        async with site.client.post(url, json={}) as response:
            error = (await response.json())["error"]
            assert response.status == 503
            assert response.headers["Retry-After"] == "5"
        assert f"127.0.0.1:{free_port}" in error["message"]
        assert "gateway.engine_url" in error["message"]
        assert error["code"] == 503
        async with site.client.get(f"{site.url}/health") as response:
            assert response.status == 503
            assert "cannot be reached" in (await response.json())["error"]["message"]


async def test_an_engine_that_hangs_up_before_answering_is_a_502() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, make_site(engine_url=f"http://127.0.0.1:{port}") as site:
        status, content = await site.chat("s")
        assert status == 502
        assert b"look into its log" in content
        await site.event("turn_finished", session_id="s", finish_reason="error")


async def test_an_engine_that_dies_mid_stream_says_so_in_band_and_never_ends_cleanly() -> None:
    async with make_site(FakeEngine(break_after=3)) as site:
        url = f"{site.url}/v1/chat/completions"
        got = bytearray()

        async def read(content: aiohttp.StreamReader) -> None:
            async for chunk in content.iter_any():
                got.extend(chunk)

        async with site.client.post(url, json={"stream": True}) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await read(response.content)
        assert got.count(b"data: ") == 4
        assert b'data: {"error":{"message":"the engine at' in got
        assert b"[DONE]" not in got
        site.engine.break_after = None
        assert (await site.chat("other"))[0] == 200


async def test_a_body_above_the_limit_is_refused_and_below_is_not() -> None:
    async with make_site(max_body_bytes=1000) as site:
        url = f"{site.url}/v1/chat/completions"
        async with site.client.post(url, data=b" " * 1001) as response:
            assert response.status == 413
            assert "gateway.max_body_bytes" in (await response.json())["error"]["message"]

        async def chunks() -> object:
            for _ in range(11):
                yield b" " * 100

        async with site.client.post(url, data=chunks()) as response:
            assert response.status == 413
        async with site.client.post(url, data=b"{}".ljust(1000)) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer right"}, 200),
        ({"x-api-key": "right"}, 200),
    ],
)
async def test_the_key_is_asked_for_and_replaced_towards_the_engine(
    headers: dict[str, str], status: int
) -> None:
    async with make_site(api_key="right", engine_api_key="engines") as site:
        url = f"{site.url}/v1/chat/completions"
        async with site.client.post(url, json={}, headers=headers) as response:
            assert response.status == status
        if status == 200:
            assert site.engine.seen[0].headers["authorization"] == "Bearer engines"
        else:
            assert site.engine.seen == []
        async with site.client.get(f"{site.url}/mars/v1/state", headers=headers) as response:
            assert response.status == status


async def test_a_client_that_leaves_inside_its_body_disturbs_nobody(site: Site) -> None:
    port = int(site.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert (await site.chat("other"))[0] == 200
    assert len(site.engine.seen) == 1
