# SPDX-License-Identifier: Apache-2.0
"""What a run looks like while it runs: a few lines on the terminal, redrawn each second."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mars.bench.compare import Run, rows
from mars.bench.runner import Running

PERIOD_S = 1.0
PLAIN_PERIOD_S = 15.0
"""Between two lines where the output is no terminal (CI logs)."""


class LiveView:
    """Shows one run after the other.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    async def watch(self, running: Running) -> None:
        """Show a run until cancelled."""
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(running.server.url, timeout=timeout) as http:
            if self._console.is_terminal:
                await self._redraw(running, http)
            else:
                await self._print(running, http)

    async def _redraw(self, running: Running, http: aiohttp.ClientSession) -> None:
        state: dict[str, Any] = {}
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                if running.phase == "replay":
                    state = await fetch_state(http) or state
                live.update(panel(running, state), refresh=True)
                await asyncio.sleep(PERIOD_S)

    async def _print(self, running: Running, http: aiohttp.ClientSession) -> None:
        while True:
            state = await fetch_state(http) if running.phase == "replay" else {}
            self._console.print(line(running, state), highlight=False)
            await asyncio.sleep(PLAIN_PERIOD_S)


async def fetch_state(http: aiohttp.ClientSession) -> dict[str, Any]:
    """The gateway's state; empty when it does not answer."""
    try:
        async with http.get("/mars/v1/state") as response:
            if response.status != 200:
                return {}
            return msgspec.json.decode(await response.read(), type=dict[str, Any])
    except (aiohttp.ClientError, OSError, msgspec.DecodeError):
        return {}


def line(running: Running, state: dict[str, Any]) -> str:
    """One line of text on a run."""
    label = running.contestant.label
    elapsed_s = time.monotonic() - running.began_at
    if running.phase != "replay":
        what = "starting the engine" if running.phase == "boot" else "collecting"
        return f"{label}: {what} ({elapsed_s:.0f} s)"
    done = running.replay.progress
    parts = [
        f"{done.num_sessions_done}/{done.num_sessions} sessions",
        f"{done.num_turns_done}/{done.num_turns} turns",
        *_facts(state),
    ]
    if done.num_sessions_failed:
        parts.append(f"{done.num_sessions_failed} failed")
    left_s = done.left_s(time.monotonic())
    if left_s is not None:
        parts.append(f"about {left_s:.0f} s left")
    return f"{label}: {', '.join(parts)}"


def _facts(state: dict[str, Any]) -> list[str]:
    """KV, sessions and tools, as far as the gateway tells."""
    if not state:
        return []
    load, facts = state.get("load", {}), list[str]()
    total, free = load.get("kv_blocks_total"), load.get("kv_blocks_free")
    if total and free is not None:
        kept = (load.get("kv_blocks_retained") or 0) / total
        facts.append(f"KV {1 - free / total:.0%} in use ({kept:.0%} held for tools)")
    window = state.get("window")
    bound = "" if window is None else f" of {window:.0f}"
    facts.append(f"{state.get('num_active', 0)}{bound} active, {state.get('num_held', 0)} held")
    if load.get("tool_slots"):
        queued, running = load.get("tools_queued") or 0, load.get("tools_running") or 0
        facts.append(f"tools {running}/{load['tool_slots']} running, {queued} queued")
    return facts


def panel(running: Running, state: dict[str, Any]) -> RenderableType:
    """The same as :func:`line` with bars."""
    done = running.replay.progress
    if running.phase != "replay":
        return Text(line(running, state))
    bars = Table.grid(padding=(0, 1))
    for name, part, whole in (
        ("sessions", done.num_sessions_done + done.num_sessions_failed, done.num_sessions),
        ("turns", done.num_turns_done, done.num_turns),
    ):
        bars.add_row(name, ProgressBar(total=whole, completed=part, width=40), f"{part}/{whole}")
    return Group(Text(line(running, state)), bars)


def comparison(runs: list[Run]) -> Table:
    """The closing table; the best value of each row stands out."""
    table = Table(show_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(run.label, justify="right")
    for row in rows(runs):
        cells = [f"[bold green]{c}[/]" if i in row.best else c for i, c in enumerate(row.cells)]
        table.add_row(row.label, *cells)
    return table
