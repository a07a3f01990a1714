# SPDX-License-Identifier: Apache-2.0
"""What the plug-in itself costs per engine step, beside what vLLM's own scheduler costs.

    python benchmarks/plugin_step.py [--policies mars,mars-paper] [--turns 512] [--steps 400]

vLLM's real scheduler runs in virtual time with so many turns in view (half of them
running), 500 idle sessions whose 20,000 cached blocks are free, and a pool so full that
steps must evict. "own" is the time in the plug-in's code alone, the block queue included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile

NUM_IDLE_SESSIONS = 500
IDLE_TOKENS = 640
OWN = ("_before_step", "_after_step", "_may_start", "_sample", "_current_load", "_finished")
OWN_BLOCKS = ("popleft_n", "remove", "append_n", "prepend_n", "use")


class OwnTime:
    """Adds up the time in wrapped functions; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def measure(policy: str | None, num_turns: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds per step: all of schedule() and update_from_output(), and the plug-in's part."""
    num_running = num_turns // 2
    pool = NUM_IDLE_SESSIONS * IDLE_TOKENS // 16 + num_running * 66
    shape = VirtualShape(num_blocks=pool, max_num_seqs=num_running, is_async=True)
    cost = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost
    own = OwnTime()
    with tempfile.TemporaryDirectory() as directory:
        mars = None if policy is None else {"policy": policy}
        engine = VirtualEngine(shape, cost, Path(directory), mars)
        now = _idle_sessions(engine)
        for index in range(num_turns):
            name = f"busy-{index}"
            engine.submit(name, name, [(name, 0, 1000)], (name, 1000, 4 * num_steps), now)
        for _ in range(60):
            now = _step(engine, now)
        scheduler: Any = engine.scheduler
        if policy is not None:
            for name in OWN:
                own.wrap(scheduler, name)
            values = scheduler._values  # noqa: SLF001 -- the benchmark looks inside
            for name in OWN_BLOCKS if values is not None else ():
                own.wrap(values, name)
        totals: list[float] = []
        owns: list[float] = []
        for _ in range(num_steps):
            own.seconds = 0.0
            start = time.perf_counter()
            now = _step(engine, now)
            totals.append(time.perf_counter() - start)
            owns.append(own.seconds)
    return totals, owns


def _idle_sessions(engine: VirtualEngine) -> float:
    now = 0.0
    for index in range(NUM_IDLE_SESSIONS):
        name = f"idle-{index}"
        engine.submit(name, name, [(name, 0, IDLE_TOKENS)], (name, IDLE_TOKENS, 1), now)
    while engine.has_requests:
        now = _step(engine, now)
    return now


def _step(engine: VirtualEngine, now: float) -> float:
    step_s = engine.plan(now)
    now += step_s or 0.001
    if step_s is not None:
        engine.complete(now)
    return now


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--policies", default="fcfs,mars-paper,mars")
    parser.add_argument("--turns", type=int, default=512)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    stock, _ = measure(None, options.turns, options.steps)
    base = statistics.median(stock) * 1e3
    print(f"{options.turns} turns in view, {NUM_IDLE_SESSIONS} idle sessions, ms per step")
    print(f"{'':12} {'step p50':>9} {'p99':>7} {'own p50':>8} {'p99':>7} {'own/stock step':>15}")
    print(f"{'stock vLLM':12} {base:9.2f} {_quantile(stock, 0.99):7.2f}")
    for policy in options.policies.split(","):
        totals, owns = measure(policy, options.turns, options.steps)
        median_own = statistics.median(owns) * 1e3
        print(
            f"{policy:12} {statistics.median(totals) * 1e3:9.2f} {_quantile(totals, 0.99):7.2f} "
            f"{median_own:8.2f} {_quantile(owns, 0.99):7.2f} {median_own / base:14.2f}x"
        )


if __name__ == "__main__":
    main()
