# SPDX-License-Identifier: Apache-2.0
"""What the order of the tool queue is worth where CPUs are short.

    python benchmarks/tool_queue.py [--seeds 3] [--cpus 2] [--regime heavy] [--options]

Simulates 60 sessions at 0.16/s on an H100-class engine with 210,000 KV tokens, `fifo`
against `shortest`, without admission control and with it; `--options` varies the constants
of `shortest` one at a time. Means over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from mars.sim.run import SimConfig, simulate
from mars.traces.schema import TraceSession
from mars.traces.synth import synth

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stretch", {"stretch": 10.0}),
    ("stretch", {"stretch": 200.0}),
    ("max_lead_s", {"max_lead_s": 300.0}),
    ("max_lead_s", {"max_lead_s": 3600.0}),
    ("max_wait_s", {"max_wait_s": 120.0}),
    ("max_wait_s", {"max_wait_s": 1800.0}),
    ("attained_share", {"attained_share": 0.0}),
    ("attained_share", {"attained_share": 2.0}),
)


def measure(
    traces: list[list[TraceSession]],
    cpus: int,
    admission: str,
    policy: str,
    options: dict[str, Any],
) -> tuple[float, ...]:
    """Mean and P95 of the session completion time (s), mean slowdown, CPU busy share."""
    rows: list[tuple[float, ...]] = []
    for trace in traces:
        config = SimConfig(
            policy="mars",
            admission=admission,
            tool_policy=policy,
            tool_policy_options=options,
            num_cpus=cpus,
            kv_tokens=210_000,
        )
        summary = simulate(trace, config).summary
        rows.append(
            (summary.sct_mean_s, summary.sct_p95_s, summary.slowdown_mean, summary.cpu_busy)
        )
    return tuple(statistics.mean(column) for column in zip(*rows, strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--regime", default="heavy")
    parser.add_argument("--options", action="store_true")
    given = parser.parse_args()
    traces = [
        list(synth(60, seed=seed, regime_name=given.regime, rate=0.16))
        for seed in range(1, given.seeds + 1)
    ]
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("fifo", "fifo", {}),
        ("shortest", "shortest", {}),
        ("shortest, overcommit 4", "shortest", {"overcommit": 4.0}),
    ]
    if given.options:
        cases += [(f"{n}={o[n]:g}", "shortest", o) for n, o in VARIANTS]
    print(
        f"{'admission':10} {'tool queue':22} {'mean s':>8} {'P95 s':>8} {'slowdown':>8} {'CPU':>5}"
    )
    for admission in ("none", "mars"):
        for label, policy, options in cases:
            mean_s, p95_s, slowdown, busy = measure(traces, given.cpus, admission, policy, options)
            print(
                f"{admission:10} {label:22} {mean_s:8.0f} {p95_s:8.0f} {slowdown:8.1f} {busy:5.2f}"
            )


if __name__ == "__main__":
    main()
