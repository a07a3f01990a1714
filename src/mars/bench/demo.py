# SPDX-License-Identifier: Apache-2.0
"""The demonstration: one scenario under several policies, one after the other, compared."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from mars.bench.compare import Run, speed_up_text
from mars.bench.live import LiveView, comparison
from mars.bench.plots import PlottedRun
from mars.bench.report import quality_text, write_report
from mars.bench.runner import Experiment, Outcome, run_contestant
from mars.bench.scenario import Contestant, Scenario, ScenarioError, pressure


async def run_all(
    scenario: Scenario, out: Path, *, port: int = 0, console: Console | None = None
) -> list[Outcome]:
    """Run every policy of a scenario, show it, and write its report; what `make demo` does.

    Args:
        scenario: what is compared.
        out: folder for the report and one folder per policy; written also when cut short.
        port: where the gateway listens; 0: a free port.
        console: where to show it.

    Raises:
        ScenarioError: the scenario cannot be run as asked.
        ServerError: an engine did not come up.
    """
    console = console or Console(quiet=True)
    experiment = Experiment.prepare(scenario)
    load = pressure(experiment.sessions, experiment.kv_tokens)
    console.rule(scenario.title)
    console.print(
        f"{experiment.profile.gpu} with {experiment.profile.model} (emulated), "
        f"{scenario.machine.tool_slots} tool slots, time scale {scenario.machine.time_scale:g}"
    )
    console.print(f"Pressure: {load}", highlight=False)
    began, outcomes = time.monotonic(), list[Outcome]()
    view = LiveView(console)
    try:
        for contestant in scenario.policies:
            outcome = await run_contestant(
                experiment,
                contestant,
                out / contestant.label,
                port=port or free_port(),
                watch=view.watch,
            )
            outcomes.append(outcome)
            console.print(_brief(outcome), highlight=False)
    except asyncio.CancelledError:
        console.print(f"Interrupted; what was measured is under {out}.", style="yellow")
        raise
    finally:
        if outcomes:
            _close(scenario, str(load), outcomes, out, console)
            console.print(f"Took {time.monotonic() - began:.0f} s.", highlight=False)
    return outcomes


def override(
    scenario: Scenario,
    *,
    workload: dict[str, Any],
    machine: dict[str, Any],
    policies: Sequence[str] = (),
    seed: int | None = None,
) -> Scenario:
    """The scenario with what is not None put in place.

    Raises:
        ScenarioError: a value out of bounds.
    """
    tree = msgspec.to_builtins(scenario)
    tree["workload"] |= {key: value for key, value in workload.items() if value is not None}
    tree["machine"] |= {key: value for key, value in machine.items() if value is not None}
    tree["seed"] = scenario.seed if seed is None else seed
    try:
        changed = msgspec.convert(tree, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"the command line: {error}") from error
    if policies:
        known = {contestant.label: contestant for contestant in scenario.policies}
        chosen = tuple(known.get(spec) or _contestant(spec) for spec in policies)
        changed = msgspec.structs.replace(changed, policies=chosen)
    return changed


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _contestant(spec: str) -> Contestant:
    """``POLICY@ADMISSION``; without the latter nothing is held."""
    policy, _, admission = spec.partition("@")
    return Contestant(label=spec.replace(":", "-"), policy=policy, admission=admission or "none")


def _brief(outcome: Outcome) -> str:
    summary, label = outcome.result.summary, outcome.contestant.label
    mean_s = summary.sct_mean_s
    text = "nothing finished" if mean_s is None else f"mean completion time {mean_s:.1f} s"
    text = f"{label}: {text}, {summary.sessions - summary.sessions_failed} of {summary.sessions}"
    return f"{text} sessions finished in {summary.duration_s:.0f} s"


def _close(
    scenario: Scenario, lead: str, outcomes: Sequence[Outcome], out: Path, console: Console
) -> None:
    """Table, verdicts, replay quality and report."""
    runs = [Run(o.contestant.label, o.result) for o in outcomes]
    console.print()
    console.print(comparison(runs))
    console.print()
    for run in runs[1:]:
        console.print(speed_up_text(run, runs[0]), style="bold", highlight=False)
    for run in runs:
        quality = run.result.replay
        style = "yellow" if quality and quality.verdict != "ok" else "dim"
        console.print(f"{run.label}: {quality_text(quality)}", style=style, highlight=False)
    plotted = [PlottedRun(o.contestant.label, o.result, o.timeline) for o in outcomes]
    command = ["mars", *sys.argv[1:]]
    path = write_report(out, plotted, title=scenario.title, lead=lead, command=command)
    console.print(f"Report: {path}", highlight=False, soft_wrap=True)
