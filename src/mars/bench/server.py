# SPDX-License-Identifier: Apache-2.0
"""The system under test as a child process: ``mars serve``, started, awaited and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

POLL_S = 0.25
STOP_GRACE_S = 45.0
"""Between SIGTERM and SIGKILL: ``mars serve`` drains and gives its engine 15 s itself."""
_TAIL_LINES = 15


class ServerError(RuntimeError):
    """The server did not come up, or ended during the run; carries the end of its log."""


class Server:
    """One ``mars serve``.

    Args:
        arguments: what follows ``mars serve``.
        url: where it will answer.
        log_path: gets its output.
    """

    def __init__(self, arguments: Sequence[str], url: str, log_path: Path) -> None:
        self.command = [sys.executable, "-m", "mars", "serve", *arguments]
        self.url = url
        self.log_path = log_path
        self.ready_after_s: float | None = None
        self._process: asyncio.subprocess.Process | None = None

    @contextlib.asynccontextmanager
    async def running(self, timeout_s: float) -> AsyncIterator[Server]:
        """Run it for the time of the block; it and all it started is gone afterwards.

        Raises:
            ServerError: it ended, or did not answer ``/health`` within ``timeout_s``.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            await self._ready(timeout_s)
            yield self
        finally:
            await self._stop()

    @property
    def pid(self) -> int:
        """Process id of ``mars serve``; its engine is a child of it.

        Raises:
            ServerError: it does not run.
        """
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.pid

    def check(self) -> None:
        """Raise if it has ended meanwhile.

        Raises:
            ServerError: it has; the message holds the end of its log.
        """
        process = self._process
        if process is not None and process.returncode is not None:
            raise ServerError(self._obituary(f"ended with status {process.returncode}"))

    def tail(self, num_lines: int = _TAIL_LINES) -> str:
        """The last lines of its log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])

    async def _ready(self, timeout_s: float) -> None:
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as http:
            while time.monotonic() - began < timeout_s:
                self.check()
                if await _is_healthy(http, self.url):
                    self.ready_after_s = time.monotonic() - began
                    return
                await asyncio.sleep(POLL_S)
        raise ServerError(self._obituary(f"was not ready after {timeout_s:g} s"))

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        # The group outlives its leader when the leader crashed: end what is left of it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _obituary(self, what: str) -> str:
        return f"`{' '.join(self.command[1:])}` {what}; the end of {self.log_path}:\n{self.tail()}"


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False
