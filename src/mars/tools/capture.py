# SPDX-License-Identifier: Apache-2.0
"""Bounded capture of a stream: its head and its tail, and how much was cut between."""

from __future__ import annotations

import asyncio
from typing import cast

_FLOOD_PAUSE_S = 0.002
"""Pause between reads once output is being cut. A read brings at most what a pipe holds
(64 KiB), so a flood costs the runtime no more than 32 MiB/s, and is slowed to that."""


class BoundedCapture:
    """Keeps the first and the last ``limit_bytes // 2`` bytes fed to it."""

    __slots__ = ("_half", "_head", "_tail", "num_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._half = limit_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.num_bytes = 0

    @property
    def num_cut_bytes(self) -> int:
        """Bytes that are not kept."""
        return max(0, self.num_bytes - 2 * self._half)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream; memory stays below ``2 * limit_bytes``."""
        self.num_bytes += len(chunk)
        room = self._half - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        self._tail += chunk[-self._half :]
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def value(self) -> bytes:
        """All of it, or head and tail with a line between that says what is missing."""
        tail = bytes(self._tail[-self._half :])
        if not self.num_cut_bytes:
            return bytes(self._head) + tail
        line = f"\n[mars: {self.num_cut_bytes} bytes of output left out here]\n"
        return bytes(self._head) + line.encode() + tail


class CaptureProtocol(asyncio.Protocol):
    """Reads a pipe into a :class:`BoundedCapture`; a flood is slowed down, never refused."""

    def __init__(self, limit_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.ReadTransport | None = None
        self.capture = BoundedCapture(limit_bytes)
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        self.capture.feed(data)
        if self.capture.num_cut_bytes and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(_FLOOD_PAUSE_S, self._resume)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self) -> None:
        """Stop reading; what was read stays."""
        if self._transport is not None:
            self._transport.close()

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
