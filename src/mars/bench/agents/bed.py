# SPDX-License-Identifier: Apache-2.0
"""What the agents run against: the emulated engine, a tap, and a gateway for each batch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from mars.bench.agents.tap import Tap
from mars.engine.emulated import prepare_model_dir, server_arguments, server_environment
from mars.profiles import load_profile
from mars.testing.server import ApiServer, free_port

PROFILE = "h100-80gb-qwen3-coder-30b-a3b"
KV_TOKENS = 600_000
"""Room for all agents at once: memory is not what is tried here."""
MAX_MODEL_LEN = 200_000
TIME_SCALE = 2.0
"""Half an H100's speed, so that a long reply is under way while every agent gets there."""
POLL_S = 0.2


class Bed:
    """Engine and tap; use :meth:`running`.

    Args:
        out: folder for logs and events.
        scripts: file of scripted replies.
        port: where the gateway listens; 0: a free one.
    """

    def __init__(self, out: Path, scripts: Path, port: int = 0) -> None:
        self.out = out
        self.profile = load_profile(PROFILE)
        self.port = port or free_port()
        engine_port = free_port()
        self.tap = Tap(free_port(), engine_port)
        self.tools = out.resolve() / "tools.sock"
        """Where agents with the tool runtime ask for slots."""
        self._streams = {
            name: f"ipc://{out.resolve()}/{name}.sock" for name in ("events", "control")
        }
        arguments = server_arguments(
            self.profile,
            prepare_model_dir(self.profile, out / "model"),
            port=engine_port,
            kv_tokens=KV_TOKENS,
            max_model_len=MAX_MODEL_LEN,
            time_scale=TIME_SCALE,
            scheduler_cls="mars.engine.vllm.MarsScheduler",
            engine_config={
                "policy": "mars",
                "scripts": str(scripts.resolve()),
                "events_endpoint": self._streams["events"],
                "control_endpoint": self._streams["control"],
            },
        )
        self._engine = ApiServer(
            arguments, environment=server_environment(os.environ), log_path=out / "engine.log"
        )

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bed]:
        """Engine and tap run for the time of the block."""
        try:
            await self.start_engine()
            yield self
        finally:
            await self.tap.close()
            await asyncio.to_thread(self._engine.stop)

    async def start_engine(self) -> None:
        """Start it and open the tap when it answers."""
        await asyncio.to_thread(self._engine.start)
        await asyncio.to_thread(self._engine.wait_ready)
        await self.tap.open()

    async def kill_engine(self) -> None:
        """SIGKILL, without any warning."""
        os.killpg(self._engine.pid, signal.SIGKILL)
        await self.tap.close()
        await asyncio.to_thread(self._engine.stop)

    @contextlib.asynccontextmanager
    async def gateway(self, events: Path, admission: str = "none") -> AsyncIterator[None]:
        """A fresh `mars gateway` with an event log of its own, for the time of the block."""
        server = ApiServer(
            [
                *("gateway", "--engine", f"http://127.0.0.1:{self.tap.port}"),
                *("--port", str(self.port), "--admission", admission, "--events", str(events)),
                *("--set", f"telemetry.events_endpoint={self._streams['events']}"),
                *("--set", f"telemetry.control_endpoint={self._streams['control']}"),
                *("--set", f"tools.socket={self.tools}", "--set", "tools.policy=shortest"),
            ],
            environment={k: v for k, v in os.environ.items() if not k.startswith("MARS_")},
            log_path=events.with_suffix(".gateway.log"),
            module="mars",
        )
        await asyncio.to_thread(server.start)
        try:
            await asyncio.to_thread(server.wait_ready)
            yield
        finally:
            await asyncio.to_thread(server.stop)

    @contextlib.asynccontextmanager
    async def full(self, num_sessions: int) -> AsyncIterator[None]:
        """So many sessions are active and idle; they end with the block."""
        names = [f"blocker-{index}" for index in range(num_sessions)]
        async with aiohttp.ClientSession(self.url) as http:
            body = {"model": self.profile.model, "prompt": "a", "max_tokens": 1}
            for name in names:
                headers = {"X-MARS-Session": name}
                async with http.post("/v1/completions", json=body, headers=headers) as response:
                    response.raise_for_status()
            try:
                yield
            finally:
                for name in names:
                    async with http.post(f"/mars/v1/sessions/{name}/end") as response:
                        await response.read()

    async def num_held(self) -> int:
        """Sessions that wait outside the engine now."""
        async with aiohttp.ClientSession(self.url) as http, http.get("/mars/v1/state") as response:
            state: dict[str, Any] = await response.json()
            return int(state["num_held"])
