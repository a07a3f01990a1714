# SPDX-License-Identifier: Apache-2.0
"""The gateway as a process: killed, stopped, restarted, refused its port."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from mars.config import GatewayConfig, MarsConfig, TelemetryConfig
from mars.core.events import ToolQueued
from mars.gateway import StartError, listen
from mars.telemetry import read_records
from mars.telemetry.zmq_stream import EventPublisher
from mars.testing.engine import FakeEngine, serve
from tests.gateway.conftest import TIMEOUT_S

RUN = """
import sys, msgspec
from mars.config import MarsConfig
from mars.gateway import StartError, run
try:
    run(msgspec.json.decode(sys.argv[1], type=MarsConfig))
except StartError as error:
    sys.exit(str(error))
"""


def config(port: int, engine_url: str = "http://127.0.0.1:9", **more: Any) -> MarsConfig:
    telemetry = {k: more.pop(k) for k in list(more) if k.startswith("events_")}
    settings = {"port": port, "engine_url": engine_url, "admission": "cap:1"} | more
    return MarsConfig(
        gateway=msgspec.convert(settings, GatewayConfig),
        telemetry=msgspec.convert(telemetry, TelemetryConfig),
    )


async def spawn(settings: MarsConfig) -> asyncio.subprocess.Process:
    """Start a gateway process."""
    arguments = [sys.executable, "-c", RUN, msgspec.json.encode(settings).decode()]
    return await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)


@contextlib.asynccontextmanager
async def process(settings: MarsConfig) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway process that serves; killed at the end."""
    made = await spawn(settings)
    try:
        url = f"http://127.0.0.1:{settings.gateway.port}/mars/v1/state"
        async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession() as client:
            while made.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(url):
                        break
                await asyncio.sleep(0.05)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.kill()
        await made.wait()


@pytest.fixture
async def engine() -> AsyncIterator[tuple[FakeEngine, str]]:
    made = FakeEngine()
    async with serve(made.app()) as url:
        yield made, url
        made.resume()


async def chat(client: aiohttp.ClientSession, port: int, session_id: str) -> tuple[int, Any, bytes]:
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"X-Session-ID": session_id}
    async with client.post(url, json={"stream": True}, headers=headers) as response:
        return response.status, response.headers, await response.read()


async def held(client: aiohttp.ClientSession, port: int, count: int) -> None:
    """Return when so many sessions are held."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            async with client.get(f"http://127.0.0.1:{port}/mars/v1/state") as response:
                if (await response.json())["num_held"] == count:
                    return
            await asyncio.sleep(0.02)


async def test_after_kill_9_the_log_is_whole_and_a_new_gateway_goes_on(
    engine: tuple[FakeEngine, str], free_port: int, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    endpoint = f"ipc://{tmp_path}/engine-events"
    settings = config(
        free_port, engine[1], events_path=str(log), events_endpoint=endpoint, admission="none"
    )
    publisher = EventPublisher(endpoint)
    try:
        async with process(settings) as gateway, aiohttp.ClientSession() as client:
            for i in range(5):
                assert (await chat(client, free_port, f"s{i}"))[0] == 200
            await logged(log, "session_admitted", 5)
            await logged(log, "tool_queued", 500, publisher)
            gateway.kill()  # while engine events stream in
            await gateway.wait()
        first = list(read_records(log))
        assert [r.seq for r in first] == list(range(1, len(first) + 1))
        log.write_bytes(log.read_bytes()[:-7])  # what a kill inside a write leaves
        assert len(list(read_records(log))) == len(first) - 1
        async with process(settings), aiohttp.ClientSession() as client:
            assert (await chat(client, free_port, "new"))[0] == 200
            await logged(log, "session_admitted", 6)
        assert [r.seq for r in read_records(log)][: len(first) - 1] == [r.seq for r in first][:-1]
    finally:
        publisher.close()


async def test_a_restarted_gateway_knows_its_sessions_and_their_places(
    engine: tuple[FakeEngine, str], free_port: int, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    settings = config(free_port, engine[1], events_path=str(log))
    async with aiohttp.ClientSession() as client:
        async with process(settings) as gateway:
            await chat(client, free_port, "active")
            waiting = [asyncio.create_task(chat(client, free_port, "first"))]
            await held(client, free_port, 1)
            waiting.append(asyncio.create_task(chat(client, free_port, "second")))
            await held(client, free_port, 2)
            await logged(log, "session_held", 2)
            gateway.kill()
            lost = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(error, aiohttp.ClientError) for error in lost)
        last_seq = list(read_records(log))[-1].seq
        async with process(settings):
            state = await state_of(client, free_port)
            assert [s["session_id"] for s in state["active"]] == ["active"]
            assert [(s["session_id"], s["is_away"]) for s in state["held"]] == [
                ("first", True),
                ("second", True),
            ]
            assert state["last_seq"] >= last_seq
            assert (await chat(client, free_port, "active"))[0] == 200  # not held again
            second = asyncio.create_task(chat(client, free_port, "second"))
            first = asyncio.create_task(chat(client, free_port, "first"))
            while any(s["is_away"] for s in (await state_of(client, free_port))["held"]):
                await asyncio.sleep(0.02)
            await end(client, free_port, "active")
            assert (await first)[0] == 200  # though its retry came later
            await end(client, free_port, "first")
            assert (await second)[0] == 200
    seqs = [r.seq for r in read_records(log)]
    assert seqs == list(range(1, len(seqs) + 1))


async def state_of(client: aiohttp.ClientSession, port: int) -> Any:
    async with client.get(f"http://127.0.0.1:{port}/mars/v1/state") as response:
        return await response.json()


async def end(client: aiohttp.ClientSession, port: int, session_id: str) -> None:
    url = f"http://127.0.0.1:{port}/mars/v1/sessions/{session_id}/end"
    async with client.post(url) as response:
        assert response.status == 200


async def logged(log: Path, kind: str, count: int, publisher: EventPublisher | None = None) -> None:
    """Return when so many events of a kind are in the log."""
    event = ToolQueued(time=1.0, session_id="s", tool_call_id="c", tool_name="bash")
    async with asyncio.timeout(TIMEOUT_S):
        while sum(r.event.kind == kind for r in read_records(log)) < count:
            if publisher is not None:
                publisher.send([event] * 20)
            await asyncio.sleep(0.02)


async def test_sigterm_finishes_turns_in_flight_and_turns_the_held_away(
    engine: tuple[FakeEngine, str], free_port: int, tmp_path: Path
) -> None:
    fake, url = engine
    fake.pause()
    log = tmp_path / "events.jsonl"
    settings = config(free_port, url, events_path=str(log))
    async with process(settings) as gateway, aiohttp.ClientSession() as client:
        running = asyncio.create_task(chat(client, free_port, "runs"))
        async with asyncio.timeout(TIMEOUT_S):
            await fake.until(lambda e: len(e.seen) == 1)
        waiting = asyncio.create_task(chat(client, free_port, "waits"))
        await held(client, free_port, 1)
        events = await client.get(f"http://127.0.0.1:{free_port}/mars/v1/events")
        gateway.send_signal(signal.SIGTERM)
        status, headers, content = await waiting
        assert status == 503
        assert 0 < int(headers["Retry-After"]) <= 30
        assert b"shutting down" in content
        await events.read()  # the event stream ends, too
        assert gateway.returncode is None
        fake.resume()
        status, _, content = await running
        assert status == 200
        assert content.endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(TIMEOUT_S):
            assert await gateway.wait() == 0
    kinds = {(r.event.kind, getattr(r.event, "reason", "")) for r in read_records(log)}
    assert ("session_ended", "drained") in kinds
    assert ("turn_finished", "") in kinds


async def test_a_port_in_use_is_named_with_the_fix(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        gateway = await spawn(config(free_port))
        async with asyncio.timeout(TIMEOUT_S):
            _, stderr = await gateway.communicate()
    message = stderr.decode()
    assert gateway.returncode == 1
    assert f"gateway.port {free_port}" in message
    assert "MARS_GATEWAY__PORT" in message
    assert "Traceback" not in message


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(StartError, match=r"gateway\.host"):
        listen(GatewayConfig(host="192.0.2.1"))


async def test_clients_of_a_killed_engine_get_errors_and_the_next_engine_serves_them(
    free_port: int,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        engine_port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "mars.testing.engine", "--port", str(engine_port)]
    arguments += ["--token-interval-s", "0.01", "--num-tokens"]
    away = f"http://127.0.0.1:{engine_port}"
    settings = config(free_port, away, admission="none", engine_wait_s=0)
    async with process(settings), aiohttp.ClientSession() as client:
        first = await asyncio.create_subprocess_exec(*arguments, "100000")
        await answers(client, free_port)
        url = f"http://127.0.0.1:{free_port}/v1/chat/completions"
        response = await client.post(url, json={"stream": True}, headers={"X-Session-ID": "s"})
        await response.content.readuntil(b"\n\n")
        first.kill()
        await first.wait()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
        assert (await chat(client, free_port, "s"))[0] == 503
        second = await asyncio.create_subprocess_exec(*arguments, "3")
        await answers(client, free_port)
        assert (await chat(client, free_port, "s"))[0] == 200
        second.kill()
        await second.wait()


async def answers(client: aiohttp.ClientSession, port: int) -> None:
    """Return when the gateway says that its engine is healthy."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            async with client.get(f"http://127.0.0.1:{port}/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)
