# SPDX-License-Identifier: Apache-2.0
"""An engine that goes away and comes back, on real sockets."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from mars.gateway.outage import Outage
from mars.testing.engine import FakeEngine, serve
from mars.testing.server import free_port


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as client:
        yield client


async def ask_health(outage: Outage, http: aiohttp.ClientSession, port: int, **fields) -> int:
    async def ask() -> aiohttp.ClientResponse:
        return await http.get(f"http://127.0.0.1:{port}/health")

    fields = {"wait_s": 60.0, "keepalive_s": 0.01, "beat": None} | fields
    response = await outage.ask(ask, **fields)
    response.release()
    return response.status


async def test_a_turn_waits_for_an_engine_that_was_there(http: aiohttp.ClientSession) -> None:
    outage, port, beats = Outage(), free_port(), asyncio.Semaphore(0)

    async def beat() -> None:
        beats.release()

    async with serve(FakeEngine().app(), port):
        assert await ask_health(outage, http, port) == 200
    waiting = asyncio.create_task(ask_health(outage, http, port, beat=beat))
    await beats.acquire()  # it has found nobody, and its client is told to be patient
    await beats.acquire()
    async with serve(FakeEngine().app(), port):
        assert await waiting == 200


async def test_an_engine_that_never_answered_is_told_at_once(http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask_health(Outage(), http, free_port())


async def test_patience_ends(http: aiohttp.ClientSession) -> None:
    outage, port = Outage(), free_port()
    async with serve(FakeEngine().app(), port):
        await ask_health(outage, http, port)
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask_health(outage, http, port, wait_s=0.0)
