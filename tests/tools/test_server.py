# SPDX-License-Identifier: Apache-2.0
"""Other processes share the pool through its socket, and a client that dies holds nothing."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mars.core.events import ToolFinished, ToolQueued, ToolStarted
from mars.tools.pool import ToolPool
from mars.tools.server import ToolServer
from tools.test_pool import Gate, Log, of


@pytest.fixture
def events() -> Log:
    return Log()


@pytest.fixture
async def server(events: Log, tmp_path: Path) -> AsyncIterator[ToolServer]:
    async with (
        ToolPool(1, emit=events.append, sample_interval_s=3600.0) as pool,
        ToolServer(pool, tmp_path / "tools.sock") as made,
    ):
        yield made


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    @classmethod
    async def ask(cls, server: ToolServer, **fields: Any) -> Client:
        client = cls(*await asyncio.open_unix_connection(server.path))
        client.say(fields)
        return client

    def say(self, fields: dict[str, Any] | bytes) -> None:
        line = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        self.writer.write(line + b"\n")

    async def answer(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self._reader.readline(), timeout=60)
        return json.loads(line)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def lease(number: int) -> dict[str, str]:
    return {"op": "lease", "session_id": "s", "tool_call_id": str(number), "tool_name": "bash:x"}


def run(script: str, number: int = 0) -> dict[str, Any]:
    request = {
        "session_id": "s",
        "tool_call_id": str(number),
        "tool_name": "bash",
        "argv": ["sh", "-c", script],
    }
    return {"op": "run", "request": request}


async def test_a_command_is_run_and_its_result_comes_back(server: ToolServer) -> None:
    client = await Client.ask(server, **run("echo hi; exit 3"))
    answer = await client.answer()
    assert answer["exit_code"] == 3
    assert b64decode(answer["stdout"]) == b"hi\n"
    await client.close()


async def test_leases_are_given_one_by_one_and_accounted(server: ToolServer, events: Log) -> None:
    first = await Client.ask(server, **lease(1))
    assert "queued_s" in await first.answer()
    second = await Client.ask(server, **lease(2))
    await events.seen(ToolQueued, "2")
    assert of(ToolStarted, events) == ["1"]
    first.say({"exit_code": 4, "duration_s": 1.0, "cpu_seconds": 0.5, "peak_bytes": 7})
    assert "queued_s" in await second.answer()
    finished = next(e for e in events if isinstance(e, ToolFinished))
    assert (finished.exit_code, finished.cpu_seconds, finished.peak_bytes) == (4, 0.5, 7)
    await first.close()
    await second.close()


async def test_a_client_that_dies_gives_its_slot_back(server: ToolServer, events: Log) -> None:
    holder = await Client.ask(server, **lease(1))
    await holder.answer()
    waiting = await Client.ask(server, **lease(2))
    await events.seen(ToolQueued, "2")
    last = await Client.ask(server, **lease(3))
    await events.seen(ToolQueued, "3")
    await waiting.close()
    await events.seen(ToolFinished, "2")
    await holder.close()
    assert "queued_s" in await last.answer()
    assert of(ToolStarted, events) == ["1", "3"]
    await last.close()


async def test_hanging_up_ends_the_command(server: ToolServer, events: Log, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "g")
    client = await Client.ask(server, **run(gate.script, 7))
    await gate.begun()
    await client.close()
    await events.seen(ToolFinished, "7")


async def test_load_and_session_end(server: ToolServer) -> None:
    client = await Client.ask(server, op="load")
    assert (await client.answer())["tool_slots"] == 1
    await client.close()
    client = await Client.ask(server, op="end_session", session_id="s")
    assert await client.answer() == {}
    await client.close()


@pytest.mark.parametrize(
    "line", [b"{", b'{"op": "fly"}', b'{"op": "run", "request": {"argv": []}}', b"[1]", b"\xff"]
)
async def test_nonsense_is_answered_with_words_and_hurts_nobody(
    server: ToolServer, line: bytes
) -> None:
    client = Client(*await asyncio.open_unix_connection(server.path))
    client.say(line)
    assert "not a request of the tool server" in (await client.answer())["error"]
    await client.close()
    other = await Client.ask(server, **run("true"))
    assert (await other.answer())["exit_code"] == 0
    await other.close()


async def test_only_the_owner_may_use_the_socket(server: ToolServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def test_a_socket_left_behind_is_replaced_and_a_live_one_is_not(
    server: ToolServer, tmp_path: Path
) -> None:
    pool = ToolPool(1)
    with pytest.raises(OSError, match="already listens"):
        await ToolServer(pool, server.path).start()
    dead = tmp_path / "dead.sock"
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({str(dead)!r})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await process.wait()
    assert dead.is_socket()
    async with ToolServer(pool, dead):
        client = Client(*await asyncio.open_unix_connection(dead))
        client.say({"op": "load"})
        assert (await client.answer())["tools_running"] == 0
        await client.close()
    assert not dead.exists()
    await pool.close()


async def exec_through(server: ToolServer, *command: str, **env: str) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mars", "exec", "--session", "x", "--tool", "bash", "--"),
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MARS_TOOLS": str(server.path), **env},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err


async def test_mars_exec_waits_for_its_slot_and_reports_through_the_server(
    server: ToolServer, events: Log
) -> None:
    holder = await Client.ask(server, **lease(1))
    await holder.answer()
    running = asyncio.ensure_future(exec_through(server, "sh", "-c", "echo out; exit 6"))
    while len(of(ToolQueued, events)) < 2:
        await events.next()
    assert of(ToolStarted, events) == ["1"]
    await holder.close()
    assert await running == (6, b"out\n", b"")
    finished = [e for e in events if isinstance(e, ToolFinished)][-1]
    assert (finished.session_id, finished.exit_code) == ("x", 6)


async def test_mars_exec_runs_without_a_slot_rather_than_not_at_all(server: ToolServer) -> None:
    holder = await Client.ask(server, **lease(1))
    await holder.answer()
    code, out, err = await exec_through(server, "echo", "out", MARS_TOOLS_WAIT_S="0.2")
    assert (code, out) == (0, b"out\n")
    assert b"no slot within 0.2 s" in err
    code, out, err = await exec_through(server, "echo", "out", MARS_TOOLS="/no/such.sock")
    assert (code, out) == (0, b"out\n")
    assert b"/no/such.sock" in err
    await holder.close()
