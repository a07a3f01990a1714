# SPDX-License-Identifier: Apache-2.0
"""One run over HTTP on the emulated engine beside the same run in virtual time.

Real parts: vLLM's API server and scheduler with the plug-in, the gateway, HTTP, the closed-loop
clients. Tools only wait: shared cores are another question, which the host model answers. So what
differs is what a simulator leaves out: the way over HTTP, tokenisation, timers that fire late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mars.bench.result import Result
from mars.bench.runner import Experiment, run_contestant
from mars.bench.scenario import Contestant, Machine, Scenario, Workload
from mars.sim.run import SimConfig, simulate
from mars.traces.schema import TraceSession

MEAN_TARGET = 0.01
P95_TARGET = 0.03


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both runs of one policy."""

    contestant: Contestant
    real: Result
    simulated: Result

    def difference(self, measure: str) -> float | None:
        """How much more the run over HTTP took, as a share; None where one is unknown."""
        real = getattr(self.real.summary, measure)
        simulated = getattr(self.simulated.summary, measure)
        return None if real is None or not simulated else real / simulated - 1.0

    @property
    def worst_session(self) -> float:
        """Largest relative difference of any session that finished in both."""
        known = {s.session_id: s.sct_s for s in self.simulated.sessions if s.sct_s}
        pairs = [
            (s.sct_s, known[s.session_id]) for s in self.real.sessions if s.session_id in known
        ]
        return max((abs(a / b - 1.0) for a, b in pairs if a is not None), default=0.0)


def waiting_only(sessions: Sequence[TraceSession]) -> list[TraceSession]:
    """The same sessions, whose tools take their time and no CPU."""
    return [
        msgspec.structs.replace(
            session,
            turns=tuple(
                msgspec.structs.replace(
                    turn,
                    tools=tuple(
                        msgspec.structs.replace(tool, cpu_s=0.0, peak_bytes=0)
                        for tool in turn.tools
                    ),
                )
                for turn in session.turns
            ),
        )
        for session in sessions
    ]


def prepare(workload: Workload, machine: Machine, contestants: Sequence[Contestant]) -> Experiment:
    """The sessions and the machine of both runs.

    Raises:
        ScenarioError: too few sessions fit, or a policy is not known.
    """
    scenario = Scenario(
        title="agreement", workload=workload, machine=machine, policies=tuple(contestants)
    )
    experiment = Experiment.prepare(scenario)
    return Experiment(
        scenario, waiting_only(experiment.sessions), experiment.profile, experiment.kv_tokens
    )


def simulated(experiment: Experiment, contestant: Contestant) -> Result:
    """The run in virtual time."""
    machine = experiment.scenario.machine
    config = SimConfig(
        policy=contestant.policy,
        admission=contestant.admission,
        tool_policy=contestant.tool_policy,
        machine=machine.profile,
        num_cpus=machine.tool_slots,
        # One block more: vLLM's null block, which the server adds to what is asked for.
        kv_tokens=experiment.kv_tokens + 16,
    )
    return simulate(experiment.sessions, config)


async def agree(
    experiment: Experiment, contestant: Contestant, folder: Path, *, port: int
) -> Agreement:
    """Run one policy both ways.

    Raises:
        ServerError: the server did not come up.
    """
    real = await run_contestant(experiment, contestant, folder, port=port)
    return Agreement(contestant, real.result, simulated(experiment, contestant))


def rows(agreements: Sequence[Agreement]) -> list[list[str]]:
    """A row a policy: both means, the differences, lateness and the run's own verdict."""
    found: list[list[str]] = []
    for one in agreements:
        mean, p95 = one.difference("sct_mean_s"), one.difference("sct_p95_s")
        quality = one.real.replay
        late = None if quality is None else quality.engine_late_share
        lag = None if quality is None else quality.lag_p99_s
        found.append(
            [
                one.contestant.label,
                f"{one.simulated.summary.sct_mean_s or 0.0:.2f}",
                f"{one.real.summary.sct_mean_s or 0.0:.2f}",
                _judged(mean, MEAN_TARGET),
                _judged(p95, P95_TARGET),
                f"{one.worst_session:.1%}",
                "-" if late is None else f"{late:.2%}",
                "-" if lag is None else f"{1e3 * lag:.1f}",
                "-" if quality is None else quality.verdict,
            ]
        )
    return found


HEADS = (
    "policy",
    "simulated mean (s)",
    "over HTTP (s)",
    "mean off",
    "P95 off",
    "worst session",
    "engine late",
    "lag P99 (ms)",
    "run",
)


def _judged(off: float | None, target: float) -> str:
    if off is None:
        return "-"
    return f"{off:+.2%} {'ok' if abs(off) <= target else 'OVER'}"
