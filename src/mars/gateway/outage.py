# SPDX-License-Identifier: Apache-2.0
"""Waits out an engine that was there and has gone: it is being started again.

Agents give up on refusals soon (opencode after five, most packages after two), and lose a task
of an hour to a restart of a minute. So a turn whose connection is refused stands still, with
the signs of life that its client takes, until the engine listens again. Only a refused
connection is tried again: the engine cannot have seen that request. An engine that never
answered is a wrong address, which is told at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp

POLL_S = 0.5
"""Between two tries; an engine takes tens of seconds to start."""

Ask = Callable[[], Awaitable[aiohttp.ClientResponse]]
Beat = Callable[[], Awaitable[None]]


class Outage:
    """Knows whether the engine has ever answered."""

    def __init__(self) -> None:
        self._has_answered = False

    async def ask(
        self, ask: Ask, wait_s: float, keepalive_s: float, beat: Beat | None
    ) -> aiohttp.ClientResponse:
        """The engine's response, waiting at most ``wait_s`` for an engine to connect to.

        Args:
            ask: sends the request.
            wait_s: 0 does not wait.
            keepalive_s: between two signs of life.
            beat: sends one; None where the client takes none.

        Raises:
            aiohttp.ClientError: what the last try met.
        """
        now = time.monotonic()
        deadline, next_beat = now + wait_s, now + keepalive_s
        while True:
            try:
                response = await ask()
            except aiohttp.ClientConnectorError:
                now = time.monotonic()
                if not self._has_answered or now >= deadline:
                    raise
            else:
                self._has_answered = True
                return response
            if beat is not None and now >= next_beat:
                next_beat = now + keepalive_s
                await beat()
            await asyncio.sleep(POLL_S)
