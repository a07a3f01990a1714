# SPDX-License-Identifier: Apache-2.0
"""An MCP server behind the proxy looks the same, and its tool calls wait and are reported."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mars.core.events import ToolFinished, ToolQueued, ToolStarted
from mars.tools.server import ToolServer
from tools.test_pool import Log, of
from tools.test_server import Client, events, lease, server
from tools.test_shim import GUARD_S, Gateway, gateway

__all__ = ["events", "gateway", "server"]  # fixtures

SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    print("server saw", message.get("method"), file=sys.stderr, flush=True)
    if message.get("method") == "die":
        sys.exit(3)
    if "id" not in message:
        continue
    if message["method"] == "tools/call":
        name = message["params"]["name"]
        result = {"content": [{"type": "text", "text": name}], "isError": name == "bad"}
    else:
        result = {"echo": message}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


class Peer:
    """A client of the proxy."""

    def __init__(self, **env: str) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mars", "exec", "--session", "s", "--mcp", "--"),
                *(sys.executable, "-c", SERVER),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout

    def say(self, **message: Any) -> None:
        self._in.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._in.flush()

    def call(self, number: int | str, name: str) -> None:
        self.say(id=number, method="tools/call", params={"name": name, "arguments": {}})

    def hear(self) -> dict[str, Any]:
        return json.loads(self._out.readline())

    def close(self) -> tuple[int, bytes]:
        _, err = self.process.communicate(timeout=GUARD_S)
        return self.process.returncode, err


@pytest.fixture
def peer(gateway: Gateway) -> Iterator[Peer]:
    made = Peer(MARS_GATEWAY=gateway.url)
    yield made
    if made.process.poll() is None:
        made.close()


def test_messages_pass_unchanged_and_the_server_ends_with_its_client(peer: Peer) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"ä": [1.50, None]}}
    peer.say(**message)
    assert peer.hear()["result"]["echo"] == message
    code, _ = peer.close()
    assert code == 0


def test_tool_calls_are_reported_with_their_outcome(peer: Peer, gateway: Gateway) -> None:
    peer.call(1, "good")
    assert peer.hear()["result"]["content"][0]["text"] == "good"
    peer.call("two", "bad")
    assert peer.hear()["id"] == "two"
    peer.close()
    kinds = [e["kind"] for e in gateway.events]
    assert kinds == ["tool_queued", "tool_started", "tool_finished"] * 2
    assert [e["tool_name"] for e in gateway.events] == ["mcp:good"] * 3 + ["mcp:bad"] * 3
    assert [e["exit_code"] for e in gateway.events if e["kind"] == "tool_finished"] == [0, 1]
    assert {e["session_id"] for e in gateway.events} == {"s"}


def test_a_server_that_dies_ends_the_proxy_with_its_exit_code(peer: Peer) -> None:
    peer.say(method="die")
    assert peer.process.stdout is not None
    assert peer.process.stdout.read() == b""
    assert peer.close()[0] == 3


def test_nonsense_is_left_to_the_server(peer: Peer) -> None:
    assert peer.process.stdin is not None
    peer.process.stdin.write(b'[{"tools/call": cancelled\n')
    peer.process.stdin.flush()
    code, err = peer.close()
    assert code == 1
    assert b"JSONDecodeError" in err


def test_a_server_that_is_not_there_is_an_error_in_words() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "exec", "--mcp", "--", "/no/such/server"],
        capture_output=True,
        timeout=GUARD_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ran.returncode == 1
    assert b"cannot start the MCP server '/no/such/server'" in ran.stderr


async def test_a_tool_call_waits_for_its_slot_and_other_messages_do_not(
    server: ToolServer, events: Log
) -> None:
    holder = await Client.ask(server, **lease(1))
    await holder.answer()
    peer = Peer(MARS_TOOLS=str(server.path))
    peer.call(1, "slow")
    while len(of(ToolQueued, events)) < 2:
        await events.next()
    peer.say(id=2, method="ping")
    assert (await asyncio.to_thread(peer.hear))["id"] == 2
    assert of(ToolStarted, events) == ["1"]
    await holder.close()
    assert (await asyncio.to_thread(peer.hear))["id"] == 1
    code, _ = await asyncio.to_thread(peer.close)
    assert code == 0
    finished = [e for e in events if isinstance(e, ToolFinished)][-1]
    assert (finished.session_id, finished.tool_name, finished.exit_code) == ("s", "mcp:slow", 0)


async def test_a_call_cancelled_while_it_waits_never_reaches_the_server(
    server: ToolServer, events: Log
) -> None:
    holder = await Client.ask(server, **lease(1))
    await holder.answer()
    peer = Peer(MARS_TOOLS=str(server.path))
    peer.call(1, "slow")
    while len(of(ToolQueued, events)) < 2:
        await events.next()
    peer.say(method="notifications/cancelled", params={"requestId": 1})
    peer.say(id=2, method="ping")
    assert (await asyncio.to_thread(peer.hear))["id"] == 2
    await holder.close()
    while len(of(ToolFinished, events)) < 2:
        await events.next()
    _, err = await asyncio.to_thread(peer.close)
    assert b"server saw tools/call" not in err
    assert b"server saw ping" in err


REAL_SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("sums")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("stdio")
"""


@pytest.mark.vllm
async def test_a_real_mcp_client_and_server_do_not_notice(gateway: Gateway, tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    from mcp.client.stdio import stdio_client

    (tmp_path / "server.py").write_text(REAL_SERVER)
    parameters = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "mars", "exec", "--mcp", "--", sys.executable, str(tmp_path / "server.py")],
        env={**os.environ, "MARS_GATEWAY": gateway.url},
    )
    async with stdio_client(parameters) as streams, mcp.ClientSession(*streams) as session:
        await session.initialize()
        assert [tool.name for tool in (await session.list_tools()).tools] == ["add"]
        result = await session.call_tool("add", {"a": 2, "b": 3})
    assert result.content[0].text == "5"
    assert "tool_finished" in [e["kind"] for e in gateway.events]
