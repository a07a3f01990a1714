# SPDX-License-Identifier: Apache-2.0
"""What a light session feels of its neighbours, with and without the tool runtime.

    python benchmarks/interference.py [--calls 30] [--bomb 32] [--hog-mib 512] [--out FOLDER]

The light session makes one short tool call after the other (20 ms of CPU in 50 ms) beside a
fork bomb (so many busy processes), a memory hog, eight compilers, and all of them. Without
the runtime every process is simply started. With it each call is in a control group of
equal weight with bounded memory and processes, on slots that `shortest` orders. The table
gives the median and P95 turnaround of the light calls (ms), and their ratio to a quiet
machine; FOLDER gets it as Markdown, and every turnaround as JSON. It takes about four minutes on
2 cores, and keeps all cores of the machine busy meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from mars.core.toolqueue.shortest import Shortest
from mars.tools import burn
from mars.tools.cgroup import ControlGroups
from mars.tools.pool import ToolPool
from mars.tools.request import ToolLimits, ToolRequest

BURN = (sys.executable, "-I", "-S", burn.__file__)
LIGHT = (*BURN, "--cpu-s", "0.02", "--wall-s", "0.05")
LIMITS = ToolLimits(cpu_weight=100, memory_bytes=256 * 2**20, num_processes=24)
BOMB = """
import os, sys
for _ in range(int(sys.argv[1]) - 1):
    if not os.fork():
        break
while True:
    pass
"""
NUM_WARM_UP = 6

RunTool = Callable[[str, str, tuple[str, ...]], Coroutine[Any, Any, None]]


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """What runs beside the light session."""

    name: str
    commands: tuple[tuple[str, ...], ...]


def neighbours(bomb: int, hog_mib: int) -> list[Neighbour]:
    """The rows of the table."""
    fork_bomb = (sys.executable, "-I", "-S", "-c", BOMB, str(bomb))
    hog = (*BURN, "--wall-s", "600", "--cpu-s", "60", "--bytes", str(hog_mib * 2**20))
    compilers = ((*BURN, "--cpu-s", "300", "--wall-s", "300"),) * 8
    return [
        Neighbour("nobody", ()),
        Neighbour(f"fork bomb of {bomb}", (fork_bomb,)),
        Neighbour(f"memory hog of {hog_mib} MiB", (hog,)),
        Neighbour("eight compilers", compilers),
        Neighbour("all of them", (fork_bomb, hog, *compilers)),
    ]


async def start_bare(session_id: str, tool_name: str, argv: tuple[str, ...]) -> None:
    """Without the runtime: start it, wait for it; when cancelled, kill its group.

    All in one kernel session, as the tools of an agent server are: a session each would have
    Linux share the CPUs between them by itself where its autogroups are on.
    """
    process = await asyncio.create_subprocess_exec(
        *argv, process_group=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def runtime() -> AsyncIterator[RunTool]:
    """With the runtime: a pool that has seen a few calls of the light session."""
    numbers = itertools.count()
    async with ToolPool(policy=Shortest(overcommit=4.0)) as pool:

        async def run(session_id: str, tool_name: str, argv: tuple[str, ...]) -> None:
            await pool.run(
                ToolRequest(
                    session_id=session_id,
                    tool_call_id=str(next(numbers)),
                    tool_name=tool_name,
                    argv=argv,
                    limits=LIMITS,
                )
            )

        for _ in range(NUM_WARM_UP):
            await run("light", "light", LIGHT)
        yield run


async def turnarounds_ms(run: RunTool, beside: Neighbour, num_calls: int) -> list[float]:
    """Turnaround of the light session's calls, from when its neighbours have begun."""
    others = [
        asyncio.ensure_future(run(f"neighbour {i}", "heavy", argv))
        for i, argv in enumerate(beside.commands)
    ]
    await asyncio.sleep(1.0 if others else 0.0)  # let them grow to their full size
    times_ms: list[float] = []
    for _ in range(num_calls):
        started = time.perf_counter()
        await run("light", "light", LIGHT)
        times_ms.append((time.perf_counter() - started) * 1000.0)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return times_ms


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


async def measured(beside: Neighbour, num_calls: int) -> dict[str, list[float]]:
    """Turnarounds (ms) of the light calls, without and with the runtime."""
    times_ms: dict[str, list[float]] = {}
    for label in ("without", "with"):
        async with contextlib.AsyncExitStack() as stack:
            run = start_bare if label == "without" else await stack.enter_async_context(runtime())
            times_ms[label] = await turnarounds_ms(run, beside, num_calls)
    return times_ms


def markdown(rows: dict[str, dict[str, list[float]]]) -> str:
    """Median and P95 turnaround, and the median as a multiple of the first row's."""
    lines = [
        "| beside | without the runtime: median, P95 ms | x quiet | with it | x quiet |",
        "| --- | --- | --- | --- | --- |",
    ]
    quiet = {label: statistics.median(ms) for label, ms in next(iter(rows.values())).items()}
    for name, times_ms in rows.items():
        cells = [name]
        for label, ms in times_ms.items():
            median_ms = statistics.median(ms)
            cells += [f"{median_ms:.0f}, {_p95(ms):.0f}", f"{median_ms / quiet[label]:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, object]:
    """Where it was measured, and what the runtime could use there."""
    groups = ControlGroups()
    groups.close()
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "losses": groups.losses,
    }


async def main() -> None:
    """Measure, print the table, and write it with all turnarounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=30, help="light calls beside each neighbour")
    parser.add_argument("--bomb", type=int, default=32, help="busy processes of the fork bomb")
    parser.add_argument("--hog-mib", type=int, default=512, help="memory that the hog wants")
    parser.add_argument("--out", type=Path, default=Path("results/interference"), help="folder")
    given = parser.parse_args()
    rows: dict[str, dict[str, list[float]]] = {}
    for beside in neighbours(given.bomb, given.hog_mib):
        print(f"beside {beside.name} ...", file=sys.stderr, flush=True)
        rows[beside.name] = await measured(beside, given.calls)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "interference.md").write_text(markdown(rows), encoding="utf-8")
    told = {"machine": machine(), "command": sys.argv, "turnaround_ms": rows}
    path = given.out / "interference.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    asyncio.run(main())
