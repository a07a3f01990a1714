# SPDX-License-Identifier: Apache-2.0
"""Nothing that clients or models say leaves the path of the request.

A word stands in prompts, tool arguments, headers, keys, replies and broken requests. Then it
is looked for in everything a real gateway process tells: log, events, metrics, state, spans.
"""

from __future__ import annotations

import asyncio
import gzip
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mars.testing.engine import FakeEngine, serve
from tests.gateway.conftest import TIMEOUT_S

CANARY = "canary-7f3a"
RUN = """
import sys
from mars.cli.logs import log_to_stderr
from mars.config import load
from mars.gateway import run
log_to_stderr("json")
run(load(sys.argv[1]))
"""


class Collector:
    """A receiver of OTLP over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        body = await request.body()
        is_packed = request.headers.get("content-encoding") == "gzip"
        self.bodies.append(gzip.decompress(body) if is_packed else body)
        return Response(media_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    made = Collector()
    async with serve(made.app()) as url:
        yield made, url


def bodies() -> list[tuple[str, Any]]:
    """What is sent, by path: text, arguments and results of tools, in every API."""
    text = [{"role": "user", "content": f"say {CANARY}"}]
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "bash", "arguments": f'{{"command": "echo {CANARY}"}}'}
    ran = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": f"{CANARY}\n"},
    ]
    tools = [{"id": "call_1", "name": "bash"}]
    says = {"fake_text": f"I say {CANARY}", "fake_tools": tools}
    return [
        ("chat/completions", {"messages": text, "stream": True} | says),
        ("chat/completions", {"messages": [*text, *ran]} | says),
        ("completions", {"prompt": CANARY} | says),
        ("responses", {"input": CANARY, "instructions": CANARY} | says),
        ("messages", {"system": CANARY, "messages": text, "metadata": {"user": CANARY}}),
        ("embeddings", {"input": CANARY}),
    ]


async def talk(client: aiohttp.ClientSession, url: str) -> None:
    """Say the word in every way there is, the wrong ones among them."""
    key = {"Authorization": f"Bearer {CANARY}"}
    extra = {"X-Custom": CANARY, "Cookie": CANARY, "User-Agent": CANARY, "X-Request-Id": CANARY}
    for path, body in bodies():
        headers = key | extra | {"X-Session-ID": "task-1"}
        query = f"?note={CANARY}"
        async with client.post(f"{url}/v1/{path}{query}", json=body, headers=headers) as response:
            assert response.status == 200
            assert path in {"embeddings", "messages"} or CANARY in await response.text()
    for broken in (f'{{"messages": "{CANARY}'.encode(), CANARY.encode() * 10_000):
        async with client.post(f"{url}/v1/completions", data=broken, headers=key) as response:
            assert response.status in {400, 413}
    wrong = {"Authorization": f"Bearer {CANARY}-wrong"}
    async with client.post(f"{url}/v1/completions", data=b"{}", headers=wrong) as response:
        assert response.status == 401
    posted = [{"kind": "tool_queued", "time": CANARY, "session_id": "task-1"}]
    async with client.post(f"{url}/mars/v1/events", json=posted, headers=key) as response:
        assert response.status == 400
    big = {"X-Long": CANARY * 10_000}
    try:
        async with client.post(f"{url}/v1/completions", data=b"{}", headers=big) as response:
            assert response.status == 431
    except aiohttp.ClientOSError:
        pass  # closed under the sender


async def test_no_word_of_a_request_is_told_anywhere(
    tmp_path: Path, free_port: int, collector: tuple[Collector, str]
) -> None:
    spans, spans_url = collector
    log, settings, url = tmp_path / "e.jsonl", tmp_path / "m.toml", f"http://127.0.0.1:{free_port}"
    async with serve(FakeEngine().app()) as engine_url, aiohttp.ClientSession() as client:
        settings.write_text(
            f"[gateway]\nport = {free_port}\nengine_url = '{engine_url}'\nadmission = 'none'\n"
            f"max_body_bytes = 50_000\nkeys = [{{ name = 'a', key = '{CANARY}' }}]\n"
            f"[telemetry]\nspans = true\nevents_path = '{log}'\n"
        )
        gateway = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "ignore", "-c", RUN, str(settings)),
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": spans_url, "PATH": "/usr/bin:/bin"},
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not await is_up(client, url):
                    await asyncio.sleep(0.05)
            await talk(client, url)
            told = ""
            headers = {"Authorization": f"Bearer {CANARY}"}
            for path in ("/metrics", "/mars/v1/state", "/ready", "/health"):
                async with client.get(url + path, headers=headers) as response:
                    told += await response.text()
        finally:
            gateway.send_signal(signal.SIGTERM)
            _, stderr = await gateway.communicate()
    told += stderr.decode() + log.read_text()
    assert '"session_id":"task-1"' in told
    assert CANARY not in told
    sent = b"".join(spans.bodies)
    assert b"invoke_agent" in sent
    assert b"execute_tool bash" in sent
    assert CANARY.encode() not in sent


async def is_up(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
