# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mars.bench.client import Replay, ReplaySettings
from mars.bench.live import comparison, fetch_state, line, panel
from mars.bench.runner import Running
from mars.bench.scenario import Contestant
from mars.bench.server import Server
from mars.bench.toolside import ToolSide
from mars.config import GatewayConfig, MarsConfig
from mars.gateway import build_app
from mars.testing.engine import FakeEngine, serve
from tests.bench.conftest import session
from tests.bench.test_compare import FCFS, MARS

STATE = {
    "window": 5.0,
    "num_active": 4,
    "num_held": 3,
    "load": {
        "kv_blocks_total": 1000,
        "kv_blocks_free": 250,
        "kv_blocks_retained": 100,
        "tool_slots": 2,
        "tools_running": 2,
        "tools_queued": 1,
    },
}


@pytest.fixture
def running() -> Running:
    contestant = Contestant(label="mars", policy="mars")
    tools = ToolSide(2, "fifo")
    replay = Replay([session("a"), session("b")], ReplaySettings(url="", model="m"), tools)
    run = Running(contestant, Server([], "", Path("x.log")), replay, tools, phase="replay")
    run.replay.progress.num_turns_done = 2
    run.replay.progress.num_sessions_failed = 1
    return run


async def test_a_line_says_how_far_it_is_and_where_the_pressure_lies(running: Running) -> None:
    text = line(running, STATE)
    for part in (
        "mars: 0/2 sessions, 2/6 turns",
        "KV 75% in use (10% held for tools)",
        "4 of 5 active, 3 held",
        "tools 2/2 running, 1 queued",
        "1 failed",
        "s left",
    ):
        assert part in text


async def test_what_is_not_known_is_left_out(running: Running) -> None:
    text = line(running, {"num_active": 2, "num_held": 0, "window": None, "load": {}})
    assert "KV" not in text
    assert "2 active, 0 held" in text
    running.phase = "boot"
    assert line(running, {}).startswith("mars: starting the engine")


async def test_the_gateways_own_state_is_understood(running: Running) -> None:
    import aiohttp

    async with serve(FakeEngine().app()) as engine_url:
        config = MarsConfig(gateway=GatewayConfig(engine_url=engine_url, admission="cap:3"))
        async with serve(build_app(config)) as url, aiohttp.ClientSession(url) as http:
            state = await fetch_state(http)
            assert "0 of 3 active, 0 held" in line(running, state)
        async with aiohttp.ClientSession(engine_url) as http:
            assert await fetch_state(http) == {}


async def test_panel_and_table_draw(running: Running) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(panel(running, STATE))
    console.print(comparison([FCFS, MARS]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "turns" in text
    assert "Completion time, mean (s)" in text
    assert "35.0" in text
