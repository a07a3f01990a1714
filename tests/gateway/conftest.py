# SPDX-License-Identifier: Apache-2.0
"""A real gateway in front of a fake engine, both on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest

from mars.config import GatewayConfig, MarsConfig, TelemetryConfig
from mars.core.events import Event
from mars.core.policy import AdmissionPolicy
from mars.gateway import Gateway, build_app
from mars.gateway.reload import Reread
from mars.telemetry import Record
from mars.testing.engine import FakeEngine, serve

TIMEOUT_S = 30.0
"""How long a test may wait for what must happen before it fails."""


@dataclass(slots=True)
class Site:
    """Engine, gateway and a client."""

    engine: FakeEngine
    engine_url: str
    url: str
    gateway: Gateway
    client: aiohttp.ClientSession
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def chat(self, session_id: str | None = None, **fields: Any) -> tuple[int, bytes]:
        """One streamed chat request through the gateway: status and whole body."""
        headers = {"X-Session-ID": session_id} if session_id else {}
        body = {"stream": True, "messages": []} | fields
        url = f"{self.url}/v1/chat/completions"
        async with self.client.post(url, json=body, headers=headers) as response:
            return response.status, await response.read()

    def start_chat(self, session_id: str, **fields: Any) -> asyncio.Task[tuple[int, bytes]]:
        """The same, in a task; cancelling it closes the connection."""
        task = asyncio.create_task(self.chat(session_id, **fields))
        self._tasks.append(task)
        return task

    async def event(self, kind: str, **wanted: Any) -> Event:
        """The first event of this kind and these fields, waiting for it if need be."""
        reader = self.gateway.hub.bus.reader(since=0)
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for record in reader.read():
                    if matches(record, kind, wanted):
                        return record.event
                await reader.wait()

    def events(self, kind: str) -> list[Any]:
        """Events of this kind so far."""
        records = self.gateway.hub.bus.reader(since=0).read(100_000)
        return [r.event for r in records if r.event.kind == kind]

    async def waiting(self, count: int) -> None:
        """Return when so many held sessions have a client that waits."""
        async with asyncio.timeout(TIMEOUT_S):
            while sum(bool(p.waiters) for p in self.gateway.admission.places()) < count:
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[FakeEngine], bool]) -> None:
        """Wait for something the engine sees."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.engine.until(condition)

    async def state(self) -> dict[str, Any]:
        """What ``/mars/v1/state`` says."""
        async with self.client.get(f"{self.url}/mars/v1/state") as response:
            return await response.json()

    async def close(self) -> None:
        """End what the test left running."""
        self.engine.resume()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def matches(record: Record, kind: str, wanted: dict[str, Any]) -> bool:
    """Whether a record is of this kind and has these fields."""
    event = record.event
    return event.kind == kind and all(getattr(event, k) == v for k, v in wanted.items())


MakeSite = Callable[..., contextlib.AbstractAsyncContextManager[Site]]


@contextlib.asynccontextmanager
async def make_site(
    engine: FakeEngine | None = None,
    policy: AdmissionPolicy | None = None,
    telemetry: dict[str, Any] | None = None,
    engine_url: str | None = None,
    reread: Reread | None = None,
    **gateway: Any,
) -> AsyncIterator[Site]:
    """A running site; keyword arguments are settings of ``[gateway]``."""
    engine = engine or FakeEngine()
    async with contextlib.AsyncExitStack() as stack:
        real_url = await stack.enter_async_context(serve(engine.app()))
        settings = {"admission": "none", "engine_url": engine_url or real_url} | gateway
        config = MarsConfig(
            gateway=msgspec.convert(settings, GatewayConfig),
            telemetry=msgspec.convert(telemetry or {}, TelemetryConfig),
        )
        app = build_app(config, policy, reread=reread)
        url = await stack.enter_async_context(serve(app))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        site = Site(engine, real_url, url, app.state.gateway, client)
        stack.push_async_callback(site.close)
        yield site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A site that admits everybody at once."""
    async with make_site() as made:
        yield made
