# SPDX-License-Identifier: Apache-2.0
"""The tool pool for other processes: JSON lines over a unix socket.

One connection is one tool call. The client sends one line and reads one line:

- ``{"op": "run", "request": {...}}``: the pool runs it; the answer is the result
  (``stdout`` and ``stderr`` in base64).
- ``{"op": "lease", "session_id", "tool_call_id", "tool_name"}``: the answer
  ``{"queued_s": ..., "cores": [...]}`` comes when there is a slot. The client starts the tool
  itself, on those cores (null: any). At the end it sends
  ``{"exit_code", "duration_s", "cpu_seconds", ...}``.
- ``{"op": "load"}``: the state of the pool.
- ``{"op": "end_session", "session_id"}``: the session is over.

Closing the connection gives up the call, so that a client that dies never holds a slot.
Whoever may open the socket (its owner only) may run commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any, Self

import msgspec

from mars.tools.pool import ToolPool
from mars.tools.request import ToolRequest, ToolResult

MAX_LINE_BYTES = 16 * 2**20
"""Longest request: a command with its environment and stdin."""


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="lease"):
    """Asks for a slot."""

    session_id: str
    tool_call_id: str
    tool_name: str


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="run"):
    """Asks for a command to be run."""

    request: ToolRequest


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="load"):
    """Asks for the state of the pool."""


class EndSession(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="end_session"):
    """Says that a session is over."""

    session_id: str


Ask = LeaseRequest | RunRequest | LoadRequest | EndSession
_asks = msgspec.json.Decoder(Ask)
_results = msgspec.json.Decoder(ToolResult)


class ToolServer:
    """Serves a pool on a unix socket.

    Args:
        pool: The pool; started at the first call, closed by whoever made it.
        path: Of the socket; one left by a dead server is replaced.
    """

    def __init__(self, pool: ToolPool, path: str | Path) -> None:
        self.path = Path(path)
        self._pool = pool
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: another server listens there, or the folder cannot be written.
        """
        if self.path.is_socket():
            await _remove_if_dead(self.path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, self.path, limit=MAX_LINE_BYTES
            )
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening, and give up the calls of all clients."""
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._answer(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass  # the client is gone, or we are closing: either way nobody listens
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ask = _asks.decode(await reader.readline())
        except (msgspec.DecodeError, ValueError) as error:
            await _send(writer, {"error": f"not a request of the tool server: {error}"})
            return
        if isinstance(ask, RunRequest | LeaseRequest):
            self._pool.start()  # nobody samples for a pool that has no calls
        match ask:
            case RunRequest():
                await self._run(ask.request, reader, writer)
            case LeaseRequest():
                await self._lease(ask, reader, writer)
            case LoadRequest():
                await _send(writer, self._pool.load()._asdict())
            case EndSession():
                self._pool.end_session(ask.session_id)
                await _send(writer, {})

    async def _run(
        self, request: ToolRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        call = asyncio.ensure_future(self._pool.run(request))
        hangup = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({call, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                await _send(writer, await call)
        finally:
            for task in (call, hangup):
                task.cancel()
            await asyncio.gather(call, hangup, return_exceptions=True)

    async def _lease(
        self, ask: LeaseRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        said = asyncio.ensure_future(reader.readline())
        held = asyncio.ensure_future(self._hold(ask, said, writer))
        try:
            # Whatever is said before the slot is there can only be the end of the connection.
            await asyncio.wait({said, held}, return_when=asyncio.FIRST_COMPLETED)
            if said.done() and not said.result():
                held.cancel()
            await asyncio.wait({held})
        finally:
            for task in (said, held):
                task.cancel()
            await asyncio.gather(said, held, return_exceptions=True)

    async def _hold(
        self, ask: LeaseRequest, said: asyncio.Future[bytes], writer: asyncio.StreamWriter
    ) -> None:
        names = (ask.session_id, ask.tool_call_id, ask.tool_name)
        async with self._pool.lease(*names) as lease:
            cores = self._pool.cores
            granted = {"queued_s": lease.queued_s, "cores": sorted(cores) if cores else None}
            await _send(writer, granted)
            with contextlib.suppress(msgspec.DecodeError):
                lease.finish(_results.decode(await said))


async def _send(writer: asyncio.StreamWriter, answer: Any) -> None:
    writer.write(msgspec.json.encode(answer) + b"\n")
    await writer.drain()


async def _remove_if_dead(path: Path) -> None:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except ConnectionRefusedError:
        path.unlink()  # noqa: ASYNC240 - a socket's name, once, at start
        return
    writer.close()
    raise OSError(f"a tool server already listens on {path}: stop it, or choose another path")
