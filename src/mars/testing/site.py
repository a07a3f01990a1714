# SPDX-License-Identifier: Apache-2.0
"""An engine and a gateway as real processes, and agents on real sockets, to break things.

Everything lives in one folder: sockets, event log, output of the processes. The engine is
the small double of :mod:`mars.testing.engine` with the plug-in's own link to the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from mars.config import GatewayConfig, MarsConfig, TelemetryConfig
from mars.telemetry import Record, read_records
from mars.testing.server import free_port

TIMEOUT_S = 60.0
"""How long anything may take before the test fails; nothing waits for it otherwise."""
POLL_S = 0.02
FAILURES = (aiohttp.ClientError, ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client saw: ``status`` 0 when there was no answer at all."""

    status: int
    body: bytes = b""
    is_broken: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether a streamed reply came to its end."""
        is_ended = not self.is_broken and self.body.endswith(b"[DONE]\n\n")
        return self.status == 200 and is_ended and b'"error"' not in self.body

    def in_words(self) -> str:
        """For the fault table."""
        if self.is_whole:
            return "200, whole"
        if not self.status:
            return "no connection"
        if self.is_broken:
            return f"{self.status}, broken off"
        return f"{self.status}, error in the stream" if self.status == 200 else str(self.status)


class Site:
    """The processes and a client. Use :func:`site`."""

    def __init__(self, folder: Path, client: aiohttp.ClientSession, **settings: Any) -> None:
        self.folder = folder
        self.client = client
        self.log = folder / "events.jsonl"
        self.engine_port, self.port = free_port(), free_port()
        telemetry = {
            "events_path": str(self.log),
            "events_endpoint": f"ipc://{folder}/events",
            "control_endpoint": f"ipc://{folder}/control",
        } | settings.pop("telemetry", {})
        gateway = {
            "port": self.port,
            "engine_url": f"http://127.0.0.1:{self.engine_port}",
            "admission": "none",
            "telemetry_stale_s": 0.6,
        } | settings
        self.config = MarsConfig(
            gateway=msgspec.convert(gateway, GatewayConfig),
            telemetry=msgspec.convert(telemetry, TelemetryConfig),
        )
        self.engine: asyncio.subprocess.Process | None = None
        self.gateway: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    # --- processes -------------------------------------------------------------------
    async def start_engine(self, *arguments: str, rank: int = 0) -> None:
        """Start the double and wait until it answers."""
        options = ["--port", str(self.engine_port), *arguments, "--rank", str(rank)]
        if self.config.telemetry.events_endpoint:
            options += ["--events-endpoint", self.config.telemetry.events_endpoint]
            if self.config.telemetry.control_endpoint:
                options += ["--control-endpoint", self.config.telemetry.control_endpoint]
        self.engine = await self._spawn("engine", "mars.testing.engine", *options)
        await self._answering(f"http://127.0.0.1:{self.engine_port}/health", self.engine)

    async def start_gateway(self) -> None:
        """Start the gateway and wait until it answers."""
        config = msgspec.json.encode(self.config).decode()
        self.gateway = await self._spawn("gateway", "mars.testing.gateway", config)
        await self._answering(f"{self.url}/mars/v1/state", self.gateway)

    async def _spawn(self, name: str, module: str, *arguments: str) -> asyncio.subprocess.Process:
        with (self.folder / f"{name}.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, stdout=output, stderr=output
            )

    async def _answering(self, url: str, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while process.returncode is None:
                with contextlib.suppress(*FAILURES):
                    async with self.client.get(url) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(POLL_S)
        raise RuntimeError(f"{url} did not come up; see the logs in {self.folder}")

    def signal_engine(self, signum: signal.Signals) -> None:
        """Send a signal to the engine."""
        assert self.engine is not None
        self.engine.send_signal(signum)

    def signal_gateway(self, signum: signal.Signals) -> None:
        """Send a signal to the gateway."""
        assert self.gateway is not None
        self.gateway.send_signal(signum)

    async def kill_engine(self) -> None:
        """SIGKILL, and wait for its end."""
        self.engine = await _killed(self.engine)

    async def kill_gateway(self) -> None:
        """SIGKILL, and wait for its end."""
        self.gateway = await _killed(self.gateway)

    def gateway_bytes(self) -> int:
        """Resident memory of the gateway."""
        assert self.gateway is not None
        return psutil.Process(self.gateway.pid).memory_info().rss

    # --- clients ---------------------------------------------------------------------
    async def chat(self, session_id: str | None = None, **fields: Any) -> Reply:
        """One streamed chat request; a failure is an answer, too."""
        headers = {"X-Session-ID": session_id} if session_id else {}
        body = {"stream": True, "messages": [{"role": "user", "content": "go"}]} | fields
        status, chunks = 0, list[bytes]()
        try:
            url = f"{self.url}/v1/chat/completions"
            async with self.client.post(url, json=body, headers=headers) as response:
                status = response.status
                async for chunk in response.content.iter_any():
                    chunks.append(chunk)
        except FAILURES:
            return Reply(status, b"".join(chunks), is_broken=True)
        return Reply(status, b"".join(chunks))

    async def chat_until_served(self, session_id: str | None = None, **fields: Any) -> list[Reply]:
        """As agents do: the same request again until a whole reply came; all replies."""
        replies = [await self.chat(session_id, **fields)]
        async with asyncio.timeout(TIMEOUT_S):
            while not replies[-1].is_whole:
                await asyncio.sleep(POLL_S * 5)
                replies.append(await self.chat(session_id, **fields))
        return replies

    async def state(self) -> dict[str, Any]:
        """``/mars/v1/state``."""
        async with self.client.get(f"{self.url}/mars/v1/state") as response:
            return await response.json()

    async def engine_state(self) -> dict[str, Any]:
        """What the double says of itself."""
        url = f"http://127.0.0.1:{self.engine_port}/fake/state"
        async with self.client.get(url) as response:
            return await response.json()

    async def burst(self, count: int) -> None:
        """Let the engine publish so many events."""
        url = f"http://127.0.0.1:{self.engine_port}/fake/burst?count={count}"
        async with self.client.post(url) as response:
            response.raise_for_status()

    async def end(self, session_id: str) -> int:
        """End a session; the status."""
        url = f"{self.url}/mars/v1/sessions/{session_id}/end"
        async with self.client.post(url) as response:
            return response.status

    async def until(
        self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        """The first state of the gateway that is as wanted."""
        return await _first(self.state, wanted, timeout_s)

    async def until_engine(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The same of the engine."""
        return await _first(self.engine_state, wanted)

    async def until_logged(self, wanted: Callable[[list[Record]], bool]) -> list[Record]:
        """The log's records once they are as wanted."""

        async def read() -> list[Record]:
            return self.records()

        return await _first(read, wanted)

    def records(self) -> list[Record]:
        """The event log so far."""
        return list(read_records(self.log)) if self.log.exists() else []

    async def close(self) -> None:
        """End both processes, whatever state they are in."""
        for process in (self.gateway, self.engine):
            await _killed(process)


async def _first(
    ask: Callable[[], Awaitable[Any]],
    wanted: Callable[[Any], bool],
    timeout_s: float = TIMEOUT_S,
) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            answer = await ask()
            if wanted(answer):
                return answer
            await asyncio.sleep(POLL_S)


async def _killed(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def site(
    folder: Path, *, engine: tuple[str, ...] = (), num_connections: int = 0, **settings: Any
) -> AsyncIterator[Site]:
    """A running site.

    Args:
        folder: for sockets and logs; its path must be short enough for a socket.
        engine: command line of the double.
        num_connections: the client's limit; 0: none.
        **settings: those of ``[gateway]``, and ``telemetry`` with those of its section.
    """
    connector = aiohttp.TCPConnector(limit=num_connections, force_close=True)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S * 20)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        made = Site(folder, client, **settings)
        try:
            await made.start_engine(*engine)
            await made.start_gateway()
            yield made
        finally:
            await made.close()
