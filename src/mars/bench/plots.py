# SPDX-License-Identifier: Apache-2.0
"""Figures of a comparison, as self-contained SVG: same axes for all runs, readable in grey.

Colours are Okabe and Ito's set for colour-blind readers (2008).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from mars.bench.metrics import completion_times_s, finished, slowdowns
from mars.bench.result import Result
from mars.bench.timeline import PHASES, Timeline
from mars.telemetry.fold import Phase

WIDTH_INCHES = 11.0
STYLE: Any = {
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mars",
}
PHASE_COLOURS = {
    Phase.HELD: "#d9d9d9",
    Phase.QUEUE: "#e69f00",
    Phase.PREFILL: "#0072b2",
    Phase.DECODE: "#56b4e9",
    Phase.TOOL_QUEUE: "#d55e00",
    Phase.TOOL: "#009e73",
    Phase.IDLE: "#f5f5f5",
}
PHASE_LABELS = {
    Phase.HELD: "held outside the engine",
    Phase.QUEUE: "queued in the engine",
    Phase.PREFILL: "prefill",
    Phase.DECODE: "decode",
    Phase.TOOL_QUEUE: "waits for a tool slot",
    Phase.TOOL: "tool runs",
    Phase.IDLE: "client",
}
RUN_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
RUN_DASHES = ("-", "-", "--", "-.", ":", "--")


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """A run with its event log; ``timeline`` is None when the log is missing."""

    label: str
    result: Result
    timeline: Timeline | None


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without XML prologue; same figure, same text."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def write_png(figure: Figure, path: Path) -> None:
    """The figure as a picture."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=110)


def session_timelines(runs: Sequence[PlottedRun]) -> Figure:
    """One lane per session, one panel per run, one common time axis (modelled seconds)."""
    shown = [run for run in runs if run.timeline is not None]
    lanes = [len(run.result.sessions) for run in shown]
    height = sum(0.16 * n + 0.75 for n in lanes) + 0.5
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots(
            len(shown), 1, sharex=True, squeeze=False, height_ratios=[n + 4 for n in lanes]
        )[:, 0]
        for axis, run in zip(axes, shown, strict=True):
            _lanes(axis, run)
        axes[-1].set_xlabel("seconds since the first arrival")
        axes[-1].set_xlim(left=0)
        figure.legend(
            handles=[Patch(color=PHASE_COLOURS[p], label=PHASE_LABELS[p]) for p in PHASES],
            loc="outside lower center",
            ncols=len(PHASES),
        )
    return figure


def _lanes(axis: Any, run: PlottedRun) -> None:
    ordered = sorted(run.result.sessions, key=lambda s: (s.arrival_s, s.session_id))
    spans = run.timeline.spans if run.timeline else {}
    for phase in PHASES:
        for lane, session in enumerate(ordered):
            bars = [
                (s.start_s, s.end_s - s.start_s)
                for s in spans.get(session.session_id, [])
                if s.phase is phase
            ]
            axis.broken_barh(bars, (lane - 0.4, 0.8), color=PHASE_COLOURS[phase], linewidth=0)
    for lane, session in enumerate(ordered):
        if session.sct_s is None:
            last = max((s.end_s for s in spans.get(session.session_id, [])), default=0.0)
            axis.plot(last, lane, "x", color="black", markersize=5)
        else:
            end = session.arrival_s + session.sct_s
            axis.plot(end, lane, "|", color="black", markersize=5)
    mean_s = run.result.summary.sct_mean_s
    title = "nothing finished" if mean_s is None else f"mean completion time {mean_s:.0f} s"
    axis.set_title(f"{run.label}: {title}")
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    axis.set_yticks([])
    axis.set_ylabel(f"{len(ordered)} sessions")
    axis.grid(visible=False, axis="y")


def loads(runs: Sequence[PlottedRun]) -> Figure:
    """KV in use and retained, sessions held and active with the window, tools: over time."""
    shown = [(r.label, r.timeline) for r in runs if r.timeline is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 6.2), layout="constrained")
        grid = figure.subplots(4, len(shown), sharex=True, sharey="row", squeeze=False)
        for column, (label, line) in enumerate(shown):
            _kv_panel(grid[0, column], line)
            _recompute_panel(grid[1, column], line)
            _session_panel(grid[2, column], line)
            _tool_panel(grid[3, column], line)
            grid[0, column].set_title(label)
            grid[3, column].set_xlabel("seconds since the first arrival")
        for row, label in enumerate(("KV pool", "prefill repeated", "sessions", "tools")):
            grid[row, 0].set_ylabel(label)
        for row in (0, 2, 3):
            grid[row, -1].legend(loc="upper right", ncols=3, fontsize=7)
    return figure


def _kv_panel(axis: Any, line: Timeline) -> None:
    used, kept = line.kv_used, line.kv_retained
    axis.fill_between(used.times_s, used.values, color="#56b4e9", lw=0, step="post", label="in use")
    axis.fill_between(
        kept.times_s, kept.values, color="#0072b2", lw=0, step="post", label="held for tools"
    )
    axis.set_ylim(0, 1.3)
    axis.set_yticks([0, 0.5, 1.0])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _recompute_panel(axis: Any, line: Timeline) -> None:
    share = line.recompute_share
    axis.fill_between(share.times_s, share.values, color="#d55e00", lw=0, alpha=0.8)
    axis.set_ylim(0, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _session_panel(axis: Any, line: Timeline) -> None:
    for series, colour, label in (
        (line.num_active, "#009e73", "active"),
        (line.num_held, "#7f7f7f", "held"),
        (line.window, "#000000", "window"),
    ):
        dash = "--" if label == "window" else "-"
        axis.step(
            series.times_s, series.values, dash, where="post", color=colour, lw=1.2, label=label
        )
    _leave_room(axis)


def _tool_panel(axis: Any, line: Timeline) -> None:
    for series, colour, label in (
        (line.tools_queued, "#d55e00", "queued"),
        (line.tools_running, "#009e73", "running"),
    ):
        axis.step(series.times_s, series.values, where="post", color=colour, lw=1, label=label)
    _leave_room(axis)


def _leave_room(axis: Any) -> None:
    """Start at zero, and keep the top free for the legend; rows share their axis."""
    top = max((max(line.get_ydata(), default=0.0) for line in axis.lines), default=1.0)
    known = top if math.isfinite(top) else 1.0
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.35 * known))


def distributions(runs: Sequence[PlottedRun]) -> Figure:
    """Empirical distribution of completion time and of slowdown, one line per run."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.0), layout="constrained")
        done = [finished(run.result.sessions) for run in runs]
        knows_alone = any(slowdowns(sessions) for sessions in done)
        axes = figure.subplots(1, 1 + knows_alone, sharey=True, squeeze=False)[0]
        for index, (run, sessions) in enumerate(zip(runs, done, strict=True)):
            look = {"color": RUN_COLOURS[index % 6], "linestyle": RUN_DASHES[index % 6]}
            _step(axes[0], completion_times_s(sessions), run.label, look)
            if knows_alone:
                _step(axes[1], slowdowns(sessions), run.label, look)
        axes[0].set_xlabel("session completion time (s)")
        axes[0].set_ylabel("share of sessions")
        if knows_alone:
            axes[1].axvline(3.0, color="#999999", lw=0.8, ls=":")
            axes[1].set_xlabel("slowdown against the session alone (3 = goodput bar)")
        for axis in axes:
            axis.set_xlim(left=0)
            axis.set_ylim(0, 1.02)
        axes[0].legend(loc="lower right")
    return figure


def _step(axis: Any, values: Sequence[float], label: str, look: dict[str, Any]) -> None:
    xs = [0.0, *sorted(values)]
    ys = np.linspace(0, 1, len(xs))
    axis.step(xs, ys, where="post", label=label, lw=1.6, **look)


def time_shares(runs: Sequence[PlottedRun]) -> Figure:
    """Where the mean session's time goes, one bar per run (modelled seconds)."""
    names = ("held_s", "queue_s", "prefill_s", "decode_s", "tool_wait_s", "tool_s", "gap_s")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 0.4 * len(runs) + 1.1), layout="constrained")
        axis = figure.subplots()
        for row, run in enumerate(runs):
            left, done = 0.0, finished(run.result.sessions)
            for phase, name in zip(PHASES, names, strict=True):
                width = float(np.mean([getattr(s, name) for s in done])) if done else 0.0
                colour = PHASE_COLOURS[phase]
                axis.barh(row, width, left=left, color=colour, edgecolor="white", linewidth=0.5)
                left += width
        axis.set_yticks(range(len(runs)), [run.label for run in runs])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("mean seconds per finished session")
        figure.legend(
            handles=[Patch(color=PHASE_COLOURS[p], label=PHASE_LABELS[p]) for p in PHASES],
            loc="outside lower center",
            ncols=len(PHASES),
        )
    return figure
