# SPDX-License-Identifier: Apache-2.0
"""The replay's tools: recorded calls as real processes on a pool, reported to the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Self

import aiohttp
import msgspec

from mars.config import ToolsConfig
from mars.core.events import Event
from mars.telemetry.codec import Record, to_map
from mars.tools import burn
from mars.tools.configured import make_pool
from mars.tools.request import ToolRequest
from mars.traces.schema import TraceTool

TIMEOUT_FACTOR = 20.0
TIMEOUT_FLOOR_S = 60.0
"""A replayed call ends by itself; the timeout only ends what went wrong (chosen)."""


class ToolSide:
    """Runs the tools of all sessions, and posts their events.

    Args:
        slots: tool calls that run at once.
        policy: tool policy that orders the queue.
        cpu_list: cores that they run on; None: all that this process may use.

    Raises:
        ConfigError: cores there are not.
    """

    def __init__(self, slots: int, policy: str, cpu_list: str | None = None) -> None:
        self.num_failed = 0
        self.num_unposted = 0
        self._wanted_s = 0.0
        self._taken_s = 0.0
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        settings = ToolsConfig(slots=slots, policy=policy, cpu_list=cpu_list)
        self._pool = make_pool(settings, self._events.put_nowait)

    async def __aenter__(self) -> Self:
        self._pool.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._pool.close()

    @property
    def stretch(self) -> float | None:
        """How many times longer than wanted the calls ran; None before the first."""
        return self._taken_s / self._wanted_s if self._wanted_s else None

    async def run(self, session_id: str, call_id: str, tool: TraceTool, time_scale: float) -> None:
        """Run one recorded call: its CPU seconds within its (dilated) duration.

        The CPU seconds are not dilated: the machine's cores are as fast as they are.
        """
        wall_s = tool.duration_s * time_scale
        request = ToolRequest(
            session_id=session_id,
            tool_call_id=call_id,
            tool_name=tool.name,
            argv=burn_command(tool, wall_s),
            timeout_s=max(TIMEOUT_FLOOR_S, wall_s * TIMEOUT_FACTOR),
        )
        result = await self._pool.run(request)
        self._wanted_s += wall_s
        self._taken_s += result.duration_s
        if result.exit_code:
            self.num_failed += 1

    def end_session(self, session_id: str) -> None:
        """Forget what was learned of a session that is over."""
        self._pool.end_session(session_id)

    async def flush(self) -> None:
        """Return when all events so far are posted; inside :meth:`posting`."""
        await self._events.join()

    @contextlib.asynccontextmanager
    async def posting(self, http: aiohttp.ClientSession) -> AsyncIterator[None]:
        """Post events as they come, for the time of the block; the rest at its end."""
        task = asyncio.create_task(self._post_all(http))
        try:
            yield
        finally:
            self._events.put_nowait(None)
            await task

    async def _post_all(self, http: aiohttp.ClientSession) -> None:
        is_open = True
        while is_open:
            taken = [await self._events.get()]
            taken += [self._events.get_nowait() for _ in range(self._events.qsize())]
            await self._post(http, [event for event in taken if event is not None])
            for _ in taken:
                self._events.task_done()
            is_open = None not in taken

    async def _post(self, http: aiohttp.ClientSession, events: list[Event]) -> None:
        if not events:
            return
        body = msgspec.json.encode([to_map(Record(0, "tools", event)) for event in events])
        headers = {"Content-Type": "application/json"}
        try:
            async with http.post("/mars/v1/events", data=body, headers=headers) as response:
                if response.status != 200:
                    self.num_unposted += len(events)
        except (aiohttp.ClientError, OSError):
            self.num_unposted += len(events)


def burn_command(tool: TraceTool, wall_s: float) -> tuple[str, ...]:
    """The command that stands for a recorded call of ``wall_s`` seconds."""
    return (
        *(sys.executable, "-I", "-S", burn.__file__),
        *("--cpu-s", f"{tool.cpu_s:.4f}", "--wall-s", f"{wall_s:.4f}"),
        *("--bytes", str(tool.peak_bytes)),
    )
