# SPDX-License-Identifier: Apache-2.0
"""How fast the simulator is: steps per second on the reference load of docs/vllm.md.

60 sessions of 12 turns, prompts from 8,000 to 60,000 tokens, 250 output tokens a turn, a pool
of 200,000 tokens. Budget: 0.5 s on one core for ``fcfs`` (36,606 steps in the original run).
"""

from __future__ import annotations

import argparse
import random
import time

from mars.core.events import Event
from mars.sim.engine import Engine
from mars.sim.run import Machine, SimConfig, simulate, simulated_engine
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

BUDGET_S = 0.5
FIRST_TOKENS, LAST_TOKENS, OUTPUT_TOKENS = 8_000, 60_000, 250


def reference(num_sessions: int = 60, num_turns: int = 12, seed: int = 1) -> list[TraceSession]:
    """The reference load: arrivals at 0.08/s, tools of 2 s on average."""
    rng = random.Random(seed)
    arrival_s = 0.0
    sessions: list[TraceSession] = []
    growth = (LAST_TOKENS - FIRST_TOKENS) / (num_turns - 1)
    for index in range(num_sessions):
        arrival_s += rng.expovariate(0.08)
        turns = tuple(
            TraceTurn(
                prompt_tokens=int(FIRST_TOKENS + growth * turn),
                output_tokens=OUTPUT_TOKENS,
                tools=(TraceTool(name="run", duration_s=rng.expovariate(0.5)),),
            )
            for turn in range(num_turns)
        )
        sessions.append(TraceSession(session_id=f"s{index}", arrival_s=arrival_s, turns=turns))
    return sessions


def measure(config: SimConfig, trace: list[TraceSession]) -> tuple[float, int, float]:
    """Wall seconds, steps and simulated seconds of one run."""
    engines: list[Engine] = []

    def keep(config: SimConfig, machine: Machine, emit: object) -> Engine:
        engines.append(simulated_engine(config, machine, emit))  # type: ignore[arg-type]
        return engines[0]

    started = time.perf_counter()
    result = simulate(trace, config, make_engine=keep)
    return time.perf_counter() - started, engines[0].num_steps, result.summary.duration_s


def count_events(trace: list[TraceSession]) -> int:
    """Events of the fcfs run, for the record."""
    seen: list[Event] = []
    simulate(trace, SimConfig(kv_tokens=200_000), sink=seen.append)
    return len(seen)


def main() -> None:
    """Print a table, one row per policy and load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the best counts")
    options = parser.parse_args()
    rows = [
        ("fcfs", "none", False, 1),
        ("fcfs", "none", True, 1),
        ("fcfs", "none", True, 4),
        ("mars", "mars", True, 1),
        ("mars-paper", "aimd-paper", True, 1),
        ("continuum-dynamic", "cap:8", True, 1),
    ]
    print(
        f"{'policy':18} {'admission':10} {'pipeline':8} {'sessions':>8} {'steps':>8} "
        f"{'simulated s':>11} {'wall s':>7} {'us/step':>8} {'steps/s':>9}"
    )
    for policy, admission, is_async, scale in rows:
        trace = reference(60 * scale)
        config = SimConfig(policy=policy, admission=admission, is_async=is_async, kv_tokens=200_000)
        wall_s, steps, simulated_s = min(measure(config, trace) for _ in range(options.repeat))
        mark = "" if scale > 1 or policy != "fcfs" else " ok" if wall_s <= BUDGET_S else " OVER"
        print(
            f"{policy:18} {admission:10} {'async' if is_async else 'sync':8} {60 * scale:8} "
            f"{steps:8} {simulated_s:11.0f} {wall_s:7.3f} {wall_s / steps * 1e6:8.2f} "
            f"{steps / wall_s:9.0f}{mark}"
        )
    print(f"events of the fcfs run: {count_events(reference())}")


if __name__ == "__main__":
    main()
