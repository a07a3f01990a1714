# SPDX-License-Identifier: Apache-2.0
"""Whether the simulator agrees with the real stack over HTTP: within 1% on the mean, 3% on P95.

Replays recorded SWE-agent sessions on vLLM with the emulated accelerator, through the gateway,
once a policy, and simulates the same. Real time: about three minutes a policy, start of the engine
included (the table says how late the machine was; a run marked other than ok says nothing). Run
it on a machine that does nothing else; on two slow cores give --time-scale 2, which takes twice as
long.

    python benchmarks/agreement_http.py --policies fcfs,mars --out results/agreement-http
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from mars.bench.agreement import HEADS, Agreement, agree, prepare, rows
from mars.bench.scenario import Contestant, Machine, Workload, pressure
from mars.testing.server import free_port

CONTESTANTS = {
    "fcfs": Contestant(label="fcfs", policy="fcfs"),
    "continuum-dynamic": Contestant(label="continuum-dynamic", policy="continuum-dynamic"),
    "mars-paper": Contestant(label="mars-paper", policy="mars-paper", admission="aimd-paper"),
    "mars": Contestant(label="mars", policy="mars", admission="mars"),
}


async def run(options: argparse.Namespace) -> list[Agreement]:
    """All policies, one after the other."""
    contestants = [CONTESTANTS[name] for name in options.policies.split(",")]
    workload = Workload(
        trace="public:swe-agent",
        sessions=options.sessions,
        turns=options.turns,
        min_turns=options.turns,
        start_context_tokens=8000,
        max_context_tokens=40000,
        arrival_rate_per_s=0.5,
        max_tool_s=5.0,
    )
    machine = Machine(
        profile=options.machine,
        kv_tokens=options.kv_tokens,
        # Tools only wait: a slot for each, so that their processes do not queue.
        tool_slots=options.sessions,
        time_scale=options.time_scale,
    )
    experiment = prepare(workload, machine, contestants)
    print(pressure(experiment.sessions, experiment.kv_tokens), flush=True)
    done: list[Agreement] = []
    for contestant in contestants:
        print(f"{contestant.label} ...", flush=True)
        folder = options.out / contestant.label
        port = options.port or free_port()
        done.append(await agree(experiment, contestant, folder, port=port))
    return done


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", default="fcfs,mars", help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--machine", default="h100-80gb-qwen3-coder-30b-a3b")
    parser.add_argument("--kv-tokens", type=int, default=120_000)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/agreement-http"))
    options = parser.parse_args()
    unknown = set(options.policies.split(",")) - set(CONTESTANTS)
    if unknown:
        parser.error(
            f"--policies: {', '.join(sorted(unknown))}; there are {', '.join(CONTESTANTS)}"
        )
    table = [list(HEADS), *rows(asyncio.run(run(options)))]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|" + "---|" * len(HEADS))
    text = "\n".join(lines) + "\n"
    print(text)
    (options.out / "agreement.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
