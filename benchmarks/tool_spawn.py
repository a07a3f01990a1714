# SPDX-License-Identifier: Apache-2.0
"""What running a tool under the runtime costs, against starting the bare process.

    python benchmarks/tool_spawn.py [--calls 200]

Each call runs `true` and waits for its end: bare, through the runner without control
groups, in a control group, and in one with every limit set. Medians; the last column is
the ratio to the bare process. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable

from mars.tools.cgroup import ControlGroups
from mars.tools.process import ToolRunner
from mars.tools.request import ToolLimits, ToolRequest

ALL_LIMITS = ToolLimits(
    cpu_weight=100, cpu_cores=1.0, memory_bytes=1 << 30, num_processes=512, file_bytes=1 << 30
)


async def bare() -> None:
    """One process without the runtime."""
    process = subprocess.Popen(  # noqa: ASYNC220 - the plain way is the yardstick
        ["true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    process.communicate()


def through(runner: ToolRunner, limits: ToolLimits) -> Callable[[], Awaitable[None]]:
    """Makes one call through the runner."""
    request = ToolRequest(
        session_id="s", tool_call_id="c", tool_name="true", argv=("true",), limits=limits
    )

    async def call() -> None:
        await runner.run(request)

    return call


async def median_ms(call: Callable[[], Awaitable[None]], num_calls: int) -> float:
    """Median wall time of a call."""
    times_s: list[float] = []
    for _ in range(num_calls):
        started = time.perf_counter()
        await call()
        times_s.append(time.perf_counter() - started)
    return statistics.median(times_s) * 1000.0


async def main(num_calls: int) -> None:
    """Print the table."""
    searching = ToolRunner(None)
    bare_ms = await median_ms(bare, num_calls)
    rows = [("bare process", bare_ms)]
    rows.append(("no control group", await median_ms(through(searching, ToolLimits()), num_calls)))
    searching.close()
    groups = ControlGroups()
    if groups.controllers:
        grouped = ToolRunner(groups)
        rows.append(("control group", await median_ms(through(grouped, ToolLimits()), num_calls)))
        rows.append(("all limits", await median_ms(through(grouped, ALL_LIMITS), num_calls)))
        grouped.close()
    print(f"{'':20} {'ms':>7} {'ratio':>7}")
    for name, took_ms in rows:
        print(f"{name:20} {took_ms:7.2f} {took_ms / bare_ms:7.1f}")
    if not groups.controllers:
        print("this machine allows no control group")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=200)
    asyncio.run(main(parser.parse_args().calls))
