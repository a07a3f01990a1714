# SPDX-License-Identifier: Apache-2.0
"""vLLM itself with the plug-in, on the emulated accelerator, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from mars.engine.emulated import prepare_model_dir, server_arguments, server_environment
from mars.profiles import load_profile
from mars.testing.faults import Outcome, books, engine_events
from mars.testing.server import ApiServer
from mars.testing.site import FAILURES, TIMEOUT_S, Reply, Site

PROFILE = "h100-qwen3-coder-30b"
SCHEDULER = "mars.engine.vllm.MarsScheduler"
KV_TOKENS = 40_000
START_S = 240.0


def vllm(made: Site) -> ApiServer:
    """The server that the site's gateway expects, not started."""
    profile = load_profile(PROFILE)
    telemetry = made.config.telemetry
    arguments = server_arguments(
        profile,
        prepare_model_dir(profile, made.folder / "model"),
        port=made.engine_port,
        kv_tokens=KV_TOKENS,
        max_model_len=16_384,
        scheduler_cls=SCHEDULER,
        engine_config={
            "events_endpoint": telemetry.events_endpoint,
            "control_endpoint": telemetry.control_endpoint,
        },
    )
    environment = server_environment(os.environ)
    return ApiServer(arguments, environment=environment, log_path=made.folder / "vllm.log")


async def complete(made: Site, session_id: str, prompt: list[int], max_tokens: int) -> Reply:
    """One streamed completion through the gateway; a failure is an answer, too."""
    body: dict[str, Any] = {
        "model": load_profile(PROFILE).model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    status, chunks = 0, list[bytes]()
    try:
        url, headers = f"{made.url}/v1/completions", {"X-Session-ID": session_id}
        async with made.client.post(url, json=body, headers=headers) as response:
            status = response.status
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
    except FAILURES:
        return Reply(status, b"".join(chunks), is_broken=True)
    return Reply(status, b"".join(chunks))


async def vllm_killed(folder: Path, num_sessions: int = 3, *, is_replaced: bool = False) -> Outcome:
    """SIGKILL vLLM, engine core and all, in turns; start it again; agents send them again.

    Each session first has a whole turn, whose KV the second would find in the cache.
    ``is_replaced`` starts the small double in its place, which saves vLLM's second start.
    """
    how = "replaced by another engine" if is_replaced else "restarted"
    out = Outcome(f"vLLM with the plug-in killed (SIGKILL) in {num_sessions} turns, {how}")
    names = [f"s{i}" for i in range(num_sessions)]
    prompts = [[16 + (i + k) % 200 for k in range(1000)] for i in range(num_sessions)]
    timeout = aiohttp.ClientTimeout(total=START_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        made = Site(folder, client, telemetry_stale_s=2.0)
        server = vllm(made)
        try:
            server.start()
            await made.start_gateway()
            await asyncio.to_thread(server.wait_ready)
            await _fresh(made)
            first = [complete(made, n, p, 8) for n, p in zip(names, prompts, strict=True)]
            out.saw(await asyncio.gather(*first))
            turns = [
                asyncio.create_task(complete(made, n, [*p, *p], 10_000))
                for n, p in zip(names, prompts, strict=True)
            ]
            await made.until(lambda s: s["load"]["num_running"] == num_sessions)
            os.killpg(server.pid, signal.SIGKILL)
            out.saw(await asyncio.gather(*turns))
            stale = await made.until(lambda s: s["is_stale"])
            server.stop()
            if is_replaced:
                await made.start_engine()
            else:
                server.start()
                await asyncio.to_thread(server.wait_ready)
            await _fresh(made)
            again = await asyncio.gather(
                *(complete(made, n, [*p, *p], 8) for n, p in zip(names, prompts, strict=True))
            )
            out.saw(again)
            await made.until_logged(lambda r: engine_events(r)["turn_finished"] >= 2 * num_sessions)
            state, records = await made.state(), made.records()
        finally:
            server.stop()
            await made.close()
    out.lost = {
        "sessions_lost": num_sessions - state["num_active"],
        "turns_never_served": sum(not reply.is_whole for reply in again),
        "turns_left_open": sum(s["phase"] in {"queue", "decode"} for s in state["active"]),
        "engine_events_lost": state["counters"]["events_dropped"],
        **books(records),
    }
    out.noted = {
        "engine_restarts": state["counters"]["engine_restarts"],
        "alarm": stale["alarms"][0],
        "kv_blocks_retained_after": state["load"]["kv_blocks_retained"],
    }
    return out


async def _fresh(made: Site) -> None:
    """Return when the engine's own telemetry is there."""
    async with asyncio.timeout(TIMEOUT_S):
        await made.until(lambda s: s["load"]["kv_blocks_total"] is not None)
