# SPDX-License-Identifier: Apache-2.0
"""Stands between gateway and engine and writes down what passes; changes nothing.

What the gateway sends on carries the client's own headers, the session that the gateway
recognised (``X-Session-ID``), and the task's mark in the body: enough to tell whose request
it was, from outside the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

CHUNK_BYTES = 65536
_HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class TappedRequest:
    """One request as the engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    reply: bytearray = field(default_factory=bytearray)
    """Head and body of the answer, as far as it has come."""


class Tap:
    """A relay of bytes in front of the engine; it listens only while there is an engine.

    Args:
        port: to listen on, on loopback.
        engine_port: to pass on to.
    """

    def __init__(self, port: int, engine_port: int) -> None:
        self.port = port
        self.requests: list[TappedRequest] = []
        self._engine_port = engine_port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse connections from now on, and break those there are, as a dead engine does."""
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            to = await asyncio.open_connection("127.0.0.1", self._engine_port)
            try:
                await _Link(self, reader, writer, *to).run()
            finally:
                to[1].close()
        writer.close()


class _Link:
    """One connection: requests are cut out on the way up, bytes pass on the way down."""

    def __init__(
        self,
        tap: Tap,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        engine_in: asyncio.StreamReader,
        engine_out: asyncio.StreamWriter,
    ) -> None:
        self._tap = tap
        self._client = (client_in, client_out)
        self._engine = (engine_in, engine_out)
        self._latest: TappedRequest | None = None

    async def run(self) -> None:
        """Pass both ways until either side closes."""
        ways = {asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self) -> None:
        reader, writer = self._client[0], self._engine[1]
        while True:
            head = await reader.readuntil(_HEAD_END)
            request = _parsed(head)
            length = int(request.headers.get("content-length", "0"))
            request.body = await reader.readexactly(length)
            self._latest = request
            self._tap.requests.append(request)
            writer.write(head + request.body)
            await writer.drain()

    async def _down(self) -> None:
        reader, writer = self._engine[0], self._client[1]
        while chunk := await reader.read(CHUNK_BYTES):
            if self._latest is not None:
                self._latest.reply += chunk
            writer.write(chunk)
            await writer.drain()


def _parsed(head: bytes) -> TappedRequest:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, path, _ = first.split(" ", 2)
    named = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in named}
    return TappedRequest(method, path, headers, b"", time.monotonic())
