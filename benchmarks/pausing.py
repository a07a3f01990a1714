# SPDX-License-Identifier: Apache-2.0
"""What the explicit pause does under overload, in virtual time: ``mars`` with and without it.

``mars`` does not pause sessions at the gateway: this is the measurement behind that. The
rule tried: pause the youngest sessions while the working set of the active ones exceeds so
many times the pool. Baselines that pause by their recipes stand beside it. Recorded Claude
Code sessions on one H100, the same numbers on any machine; about 5 minutes for two seeds.

Run: ``python benchmarks/pausing.py [--seeds 1 2] [--sessions 40]``.
"""

from __future__ import annotations

import argparse
from typing import Any

from mars.core.admissions.mars import Mars
from mars.core.events import Event, SessionPaused
from mars.core.model import ActiveSet, Load
from mars.sim.run import SimConfig, simulate
from mars.traces.io import read_trace
from mars.traces.sample import sample

MACHINE, KV_TOKENS = "h100-80gb-qwen3-coder-30b-a3b", 135_488
RATE_PER_S = 0.03


class PausingMars(Mars):
    """``mars``, and the youngest are paused while the working set exceeds ``share`` pools."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        excess = self.projection.working_set_tokens(active, now)
        excess -= self.share * self.projection.pool_tokens
        stopped: list[str] = []
        youngest = sorted(active.sessions.values(), key=lambda s: (-s.arrival_time, s.session_id))
        for session in youngest:
            if excess <= 0 or not self.projection.pool_tokens:
                break
            excess -= self.projection.present_tokens(session)
            stopped.append(session.session_id)
        return stopped


PAUSING = f"{__name__}.PausingMars"
CONTENDERS: list[tuple[str, str, dict[str, Any]]] = [
    ("mars", "mars", {}),
    *(("mars", PAUSING, {"share": share}) for share in (1.0, 1.5, 2.0)),
    ("fcfs", "thunderagent", {}),
    ("fcfs", "concur", {}),
]


def main() -> None:
    """Print a row for each contender and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sessions", type=int, default=40)
    options = parser.parse_args()
    print(f"{'seed':>4} {'policy':6} {'admission':24} {'mean s':>8} {'p95 s':>8} {'pauses':>7}")
    for seed in options.seeds:
        trace = sample(
            read_trace("public:claude-code"),
            options.sessions,
            seed=seed,
            rate=RATE_PER_S,
            max_turns=30,
            max_gap_s=30.0,
        )
        for policy, admission, more in CONTENDERS:
            pauses: list[Event] = []
            config = SimConfig(
                policy=policy,
                admission=admission,
                admission_options=more,
                machine=MACHINE,
                kv_tokens=KV_TOKENS,
            )
            summary = simulate(
                trace,
                config,
                sink=lambda e, p=pauses: p.append(e) if isinstance(e, SessionPaused) else None,
            ).summary
            name = f"mars, pausing at {more['share']}" if more else admission
            print(
                f"{seed:>4} {policy:6} {name:24} {summary.sct_mean_s:>8.0f} "
                f"{summary.sct_p95_s:>8.0f} {len(pauses):>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
