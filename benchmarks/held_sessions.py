# SPDX-License-Identifier: Apache-2.0
"""What held sessions cost the control plane: time of one control tick and memory, by their number.

Budget: a tick with 10,000 held sessions takes less than the control interval (200 ms), and
grows no faster than their number once they no longer fit the processor's caches. The queue
is full and nobody can be let in, which is the worst case: each tick looks at all in vain.

Run: ``python benchmarks/held_sessions.py [--held 2500 5000 10000] [--ticks 50] [--json OUT]``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
import tracemalloc
from pathlib import Path

from mars.config import GatewayConfig
from mars.core.model import Load
from mars.core.policy import admission_policies
from mars.gateway.admission import Admission
from mars.gateway.identity import Identity

NUM_ACTIVE = 30
BUDGET_MS = 200.0


def full(now: float) -> Load:
    """An engine without a free block, and swamped tools."""
    return Load(
        now,
        kv_blocks_total=13_000,
        kv_blocks_free=0,
        num_running=NUM_ACTIVE,
        num_waiting=5,
        computed_tokens=1000,
        recomputed_tokens=500,
        tool_slots=8,
        tools_running=8,
        tools_queued=40,
        tool_queue_delay_s=20.0,
    )


async def measure(name: str, num_held: int, num_ticks: int) -> dict[str, float]:
    """Milliseconds of a tick (median and largest), and bytes a held session."""
    admission = Admission(
        admission_policies.create(name),
        GatewayConfig(),
        load=lambda now: Load(now, kv_blocks_total=13_000, kv_blocks_free=13_000),
        is_stale=lambda now: False,
        emit=lambda event: None,
        clock=time.monotonic,
        max_held=num_held,
    )
    for i in range(NUM_ACTIVE):
        who = Identity(f"active{i}", "benchmark")
        entering = asyncio.ensure_future(admission.enter(who, 5_000))
        admission.tick()
        await asyncio.sleep(0)
        if entering.done():
            admission.begin_turn(entering.result())
    admission._load = full  # noqa: SLF001 -- from here on nothing fits
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    waiting = [
        asyncio.ensure_future(admission.enter(Identity(f"held{i}", "benchmark"), 5_000 + i % 977))
        for i in range(num_held)
    ]
    await asyncio.sleep(0)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    took_ms: list[float] = []
    for _ in range(num_ticks):
        start = time.perf_counter()
        admission.tick()
        took_ms.append(1000 * (time.perf_counter() - start))
        await asyncio.sleep(0)
    held = admission.num_held
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return {
        "held": held,
        "tick_ms": round(statistics.median(took_ms), 3),
        "tick_max_ms": round(max(took_ms), 3),
        "bytes_each": round((after - before) / max(1, num_held)),
    }


def main() -> None:
    """Measure each policy at each size; exit with 1 beyond the budget."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--held", type=int, nargs="+", default=[2_500, 5_000, 10_000])
    parser.add_argument("--ticks", type=int, default=50)
    parser.add_argument("--policies", nargs="+", default=admission_policies.names())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(f"{'policy':14} {'held':>7} {'tick ms':>9} {'max ms':>9} {'bytes each':>11} {'ratio':>7}")
    is_over = False
    for name in options.policies:
        if name == "none":
            continue  # holds nobody
        first: float | None = None
        for num_held in options.held:
            row = asyncio.run(measure(name, num_held, options.ticks))
            first = first or row["tick_ms"] / num_held
            ratio = row["tick_ms"] / num_held / first
            is_over |= row["tick_max_ms"] > BUDGET_MS
            rows.append({"policy": name, "per_session_ratio": round(ratio, 3)} | row)
            print(
                f"{name:14} {row['held']:>7} {row['tick_ms']:>9.2f} {row['tick_max_ms']:>9.2f} "
                f"{row['bytes_each']:>11} {ratio:>7.2f}"
            )
    print("ratio: time a held session, against the first size; 1 is linear, less is better")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(int(is_over))


if __name__ == "__main__":
    main()
