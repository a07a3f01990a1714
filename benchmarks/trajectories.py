# SPDX-License-Identifier: Apache-2.0
"""Admission under a step load, drawn over time: KV-bound, CPU-bound, roomy and calm.

Run: ``python benchmarks/trajectories.py [--out docs/img] [--json FILE]``. Four recorded
agents run; after 120 s, forty (calm: ten) more arrive within 20 s. In virtual time, so
the figures are the same on any machine. Left as published (``aimd-paper`` before the
``mars-paper`` scheduler), right ours (``mars`` before ``mars``). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from msgspec.structs import replace

from mars.bench.plots import STYLE
from mars.bench.result import Result
from mars.bench.timeline import Timeline, build_timeline
from mars.core.events import Event
from mars.sim.run import SimConfig, simulate
from mars.traces.io import read_trace
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, TraceTurn

NUM_BEFORE = 4
STEP_AT_S, STEP_TAKES_S = 120.0, 20.0
POLICIES = (("aimd-paper", "mars-paper"), ("mars", "mars"))
"""Admission and scheduling, left to right."""
DPI = 80
HEADS = (
    *("scenario", "admission", "mean completion", "p95", "most active", "most held"),
    *("prefill repeated", "preemptions", "longest tool wait"),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is scarce."""

    name: str
    title: str
    config: SimConfig
    tool_factor: float = 1.0
    num_step: int = 40
    """Sessions that arrive with the step."""


SCENARIOS = (
    Scenario(
        "kv-bound",
        "KV-bound: a pool of 210,000 tokens, 32 cores",
        SimConfig(machine="h100-qwen3-coder-30b", kv_tokens=210_000, num_cpus=32),
    ),
    Scenario(
        "cpu-bound",
        "CPU-bound: the whole pool of an H200, 2 cores, tools 6 times as long",
        SimConfig(machine="h200-qwen3-coder-30b", num_cpus=2),
        tool_factor=6.0,
    ),
    Scenario(
        "roomy",
        "Roomy: the whole pool of an H200, which holds the early turns of all but not the late",
        SimConfig(machine="h200-qwen3-coder-30b", num_cpus=32),
    ),
    Scenario(
        "calm",
        "Calm: the same machine, and only ten sessions more",
        SimConfig(machine="h200-qwen3-coder-30b", num_cpus=32),
        num_step=10,
    ),
)


def step_load(scenario: Scenario) -> list[TraceSession]:
    """The sessions of the load, in order of arrival; tools and their CPU time stretched."""
    drawn = sample(read_trace("public:swe-agent"), NUM_BEFORE + scenario.num_step, seed=7)
    sessions: list[TraceSession] = []
    for number, session in enumerate(drawn):
        late = number - NUM_BEFORE
        arrival_s = (
            STEP_AT_S + late * STEP_TAKES_S / scenario.num_step if late >= 0 else 10.0 * number
        )
        turns = [_stretched(turn, scenario.tool_factor) for turn in session.turns]
        sessions.append(replace(session, arrival_s=arrival_s, turns=turns))
    return sessions


def _stretched(turn: TraceTurn, factor: float) -> TraceTurn:
    tools = [
        replace(
            tool,
            duration_s=tool.duration_s * factor,
            cpu_s=tool.cpu_s * factor,
        )
        for tool in turn.tools
    ]
    return replace(turn, tools=tools)


def run(scenario: Scenario, admission: str, policy: str) -> tuple[Result, Timeline]:
    """One simulation and its timeline."""
    events: list[Event] = []
    config = dataclasses.replace(
        scenario.config, admission=admission, policy=policy, keeps_turns=False
    )
    result = simulate(step_load(scenario), config, sink=events.append)
    return result, build_timeline(events, started_at=0.0)


def draw(scenario: Scenario, runs: Sequence[tuple[str, Result, Timeline]]) -> Figure:
    """Window, active and held; KV in use; prefill repeated; wait for a tool slot."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7), layout="constrained")
        figure.suptitle(scenario.title, fontsize=11, fontweight="bold")
        grid = figure.subplots(4, len(runs), sharex=True, sharey="row", squeeze=False)
        for column, (label, result, line) in enumerate(runs):
            _sessions(grid[0, column], line, scenario.num_step)
            _shares(grid[1, column], line)
            _repeated(grid[2, column], line)
            _tools(grid[3, column], line)
            mean_s = result.summary.sct_mean_s or float("nan")
            grid[0, column].set_title(f"{label}: mean completion time {mean_s:.0f} s")
            grid[3, column].set_xlabel("seconds")
            for axis in grid[:, column]:
                axis.axvline(STEP_AT_S, color="#999999", lw=0.8, ls=":")
                axis.set_xlim(left=0)
        rows = ("sessions", "KV in use", "prefill repeated", "wait for a tool slot (s)")
        for row, label in enumerate(rows):
            grid[row, 0].set_ylabel(label)
        grid[0, 0].legend(loc="upper right", ncols=3, fontsize=7.5)
        grid[1, 0].legend(loc="upper right", ncols=2, fontsize=7.5)
    return figure


def _sessions(axis: Any, line: Timeline, num_step: int) -> None:
    for series, colour, label, dash in (
        (line.num_active, "#009e73", "active", "-"),
        (line.num_held, "#7f7f7f", "held", "-"),
        (line.window, "#000000", "window", "--"),
    ):
        axis.step(
            series.times_s, series.values, dash, where="post", color=colour, lw=1.2, label=label
        )
    axis.set_ylim(0, 1.4 * num_step)
    if not any(value == value for value in line.window.values):  # noqa: PLR0124 - not nan
        text = "no bound in sessions: the working set decides"
        axis.text(0.99, 0.9, text, transform=axis.transAxes, ha="right", fontsize=7.5)


def _shares(axis: Any, line: Timeline) -> None:
    used, kept = line.kv_used, line.kv_retained
    axis.fill_between(used.times_s, used.values, step="post", color="#56b4e9", lw=0, label="in use")
    axis.fill_between(
        kept.times_s, kept.values, step="post", color="#0072b2", lw=0, label="held for tools"
    )
    axis.set_ylim(0, 1.25)
    axis.set_yticks([0, 0.5, 1.0])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _repeated(axis: Any, line: Timeline) -> None:
    share = line.recompute_share
    axis.fill_between(share.times_s, share.values, color="#d55e00", lw=0, alpha=0.8)
    axis.set_ylim(0, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _tools(axis: Any, line: Timeline) -> None:
    samples = line.fold.host_samples
    axis.step(
        [sample.time for sample in samples],
        [sample.tool_queue_delay_s for sample in samples],
        where="post",
        color="#cc79a7",
        lw=1,
    )
    longest_s = max((sample.tool_queue_delay_s for sample in samples), default=0.0)
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1], 1.1 * longest_s))


def row_of(scenario: Scenario, label: str, result: Result, line: Timeline) -> dict[str, Any]:
    """Numbers of one run, for the table."""
    summary = result.summary
    computed, recomputed = summary.computed_tokens, summary.recomputed_tokens
    waits_s = [sample.tool_queue_delay_s for sample in line.fold.host_samples]
    return {
        "scenario": scenario.name,
        "policy": label,
        "sct_mean_s": summary.sct_mean_s,
        "sct_p95_s": summary.sct_p95_s,
        "most_active": max(line.num_active.values, default=0),
        "most_held": max(line.num_held.values, default=0),
        "recompute_share": recomputed / computed if computed and recomputed is not None else None,
        "preemptions": summary.preemptions,
        "longest_tool_wait_s": max(waits_s, default=0.0),
    }


def main() -> None:
    """Simulate, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for scenario in SCENARIOS:
        runs: list[tuple[str, Result, Timeline]] = []
        for admission, policy in POLICIES:
            print(f"{scenario.name}: {admission} ...", file=sys.stderr, flush=True)
            result, line = run(scenario, admission, policy)
            runs.append((admission, result, line))
            rows.append(row_of(scenario, admission, result, line))
        path = options.out / f"step-{scenario.name}.png"
        with mpl.rc_context(STYLE):
            draw(scenario, runs).savefig(path, dpi=DPI, metadata={"Software": None})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    for row in rows:
        share = row["recompute_share"]
        cells = (
            row["scenario"],
            row["policy"],
            f"{row['sct_mean_s']:.0f} s",
            f"{row['sct_p95_s']:.0f} s",
            f"{row['most_active']:.0f}",
            f"{row['most_held']:.0f}",
            "-" if share is None else f"{share:.1%}",
            row["preemptions"],
            f"{row['longest_tool_wait_s']:.0f} s",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
