# SPDX-License-Identifier: Apache-2.0
"""What the plug-in itself costs per engine step, beside what vLLM's own scheduler costs.

    python benchmarks/plugin_step.py [--policies mars,mars-paper] [--turns 512] [--steps 400]

vLLM's real scheduler runs in virtual time with so many turns in view, half of them running; some
finish in every step, and their sessions come back at once. 500 idle sessions have 20,000 cached
blocks, and the pool is so full that steps must evict. "own" is the time in the plug-in's code
alone, plans of the policy and the block queue included, of one step with its arrivals. CPU
seconds of the one thread, so that a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.utils.gc_utils import freeze_gc_heap

from mars.core.policy import scheduling_policies
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile
from mars.traces.io import read_trace

NUM_IDLE_SESSIONS = 500
IDLE_TOKENS = 640
PROMPT_TOKENS = 1000
OWN = ("_before_step", "_after_step", "_sample", "_current_load", "_finished", "_fit", "_release")
OWN_CORE = ("expired", "submit")
OWN_BLOCKS = ("popleft_n", "append_n", "prepend_n", "use")
# Not "remove": once a block, it costs what vLLM's does, and timing it would cost more.


class OwnTime:
    """Adds up the time in wrapped functions; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.thread_time() if self._depth == 1 else 0.0
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.thread_time() - start

        setattr(owner, name, timed)


def measure(policy: str | None, num_turns: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds per step: arrivals, schedule() and update_from_output(), and the plug-in's part."""
    num_running = num_turns // 2
    pool = NUM_IDLE_SESSIONS * IDLE_TOKENS // 16 + num_running * 69
    shape = VirtualShape(num_blocks=pool, max_num_seqs=num_running, is_async=True)
    cost = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost
    own = OwnTime()
    with tempfile.TemporaryDirectory() as directory:
        mars = None if policy is None else {"policy": policy}
        engine = VirtualEngine(shape, cost, Path(directory), mars)
        freeze_gc_heap()  # as vLLM's engine core does once it is up
        load = Load(engine, _idle_sessions(engine))
        for index in range(num_turns):
            load.ask(f"busy-{index}")
        for _ in range(120):
            load.step()
        if policy is not None:
            _watch(own, engine.scheduler)
        totals: list[float] = []
        owns: list[float] = []
        for _ in range(num_steps):
            own.seconds = 0.0
            start = time.thread_time()
            load.step()
            totals.append(time.thread_time() - start)
            owns.append(own.seconds)
    return totals, owns


def _watch(own: OwnTime, scheduler: Any) -> None:
    for name in OWN:
        own.wrap(scheduler, name)
    for name in OWN_CORE:
        own.wrap(scheduler._co, name)  # noqa: SLF001 -- the benchmark looks inside
    if hasattr(scheduler.waiting, "is_open"):
        own.wrap(scheduler.waiting, "is_open")
    if scheduler._values is not None:  # noqa: SLF001
        for name in OWN_BLOCKS:
            own.wrap(scheduler._values, name)  # noqa: SLF001


class Load:
    """Busy sessions, each with one turn in view at any time; replies as long as recorded ones."""

    def __init__(self, engine: VirtualEngine, now: float) -> None:
        self.engine = engine
        self.now = now
        self._rng = random.Random(0)
        self._replies = [
            turn.output_tokens
            for session in read_trace("public:swe-agent")
            for turn in session.turns
            if turn.output_tokens
        ]
        self._num_asked = 0

    def ask(self, session: str) -> None:
        """A turn of the session arrives."""
        self._num_asked += 1
        reply = self._rng.choice(self._replies)
        request_id = f"{session}/{self._num_asked}"
        prompt = [(session, 0, PROMPT_TOKENS)]
        answer = (f"{session} says", self._num_asked * 100, reply)
        self.engine.submit(request_id, session, prompt, answer, self.now)

    def step(self) -> None:
        """One engine step; the sessions of turns that finished in it come back."""
        step_s = self.engine.plan(self.now)
        self.now += step_s or 0.001
        if step_s is not None:
            for request_id in self.engine.complete(self.now):
                self.ask(request_id.partition("/")[0])


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--policies", default=",".join(scheduling_policies.names()))
    parser.add_argument("--turns", type=int, default=512)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    stock, _ = measure(None, options.turns, options.steps)
    base = statistics.median(stock) * 1e3
    print(f"{options.turns} turns in view, {NUM_IDLE_SESSIONS} idle sessions, CPU ms per step")
    heads = ("step p50", "p99", "own p50", "p99", "max", "own/stock step")
    print(f"{'':18}" + "".join(f"{head:>9}" for head in heads))
    print(f"{'stock vLLM':18}{base:9.2f}{_quantile(stock, 0.99):9.2f}")
    for policy in options.policies.split(","):
        totals, owns = measure(policy, options.turns, options.steps)
        median_own = statistics.median(owns) * 1e3
        print(
            f"{policy:18}{statistics.median(totals) * 1e3:9.2f}{_quantile(totals, 0.99):9.2f}"
            f"{median_own:9.2f}{_quantile(owns, 0.99):9.2f}{max(owns) * 1e3:9.2f}"
            f"{median_own / base:13.2f}x"
        )


if __name__ == "__main__":
    main()
