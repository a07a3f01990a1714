# SPDX-License-Identifier: Apache-2.0
"""Figures of an experiment: measures against load, or side by side where there is one load.

A contender keeps its colour in all figures: solid under its own admission, dashed under its
best static cap. Bands are 95% intervals of the mean over seeds: of ours, or none could be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mars.bench.experiment_table import MEASURES, Entry, Point
from mars.bench.plots import STYLE, WIDTH_INCHES

COLOURS = (
    "#000000",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6d31",
    "#7f7f7f",
    "#882255",
    "#117733",
    "#b2b2d8",
    "#999933",
    "#332288",
)
OURS = "#d55e00"
"""The contender that the experiment is about; nobody else has this colour."""
MARKS = "osD^vP*XdpHh8"


def colour_of(contender: str, contenders: Sequence[str], ours: str | None) -> str:
    """A contender's colour, the same in all figures of an experiment."""
    if contender == ours:
        return OURS
    return COLOURS[contenders.index(contender) % len(COLOURS)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: what it shows, and its caption."""

    name: str
    heading: str
    measures: tuple[str, ...]
    caption: str


DRAWINGS = (
    Drawing(
        "completion",
        "Completion time",
        ("sct_mean_s", "sct_p95_s"),
        "Seconds from a session's arrival to its end, mean and 95th percentile; dotted grey: "
        "below this no schedule can be; dotted red: the knee.",
    ),
    Drawing(
        "goodput",
        "Goodput and throughput",
        ("goodput_3", "sessions_per_h"),
        "Sessions an hour that finish within three times their time alone, and all that finish.",
    ),
    Drawing(
        "waste",
        "Work done twice",
        ("recompute_share", "slowdown_mean"),
        "Tokens computed that had been computed before, as a share; and mean slowdown.",
    ),
)
ALPHAS = Drawing(
    "alpha",
    "Goodput by bar",
    ("goodput_2", "goodput_3", "goodput_5"),
    "Sessions an hour that finish within alpha times their time alone, at the knee and at the "
    "highest load.",
)


def draw_alphas(chosen: Sequence[Point], ours: str | None = None) -> Figure:
    """Goodput at each bar of everyone at each of the given points: panels, two in a row."""
    contenders = list(dict.fromkeys(e.contender for p in chosen for e in p.entries))
    bars = max(len(p.shown) for p in chosen)
    rows, columns = -(-len(chosen) // 2), min(2, len(chosen))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, rows * (0.26 * bars + 1.0)), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in grid[len(chosen) :]:
            axis.remove()
        for axis, point in zip(grid, chosen, strict=False):
            axis.set_title(f"{point.machine}, {point.rate_per_s:g}/s")
            _alpha_bars(axis, point, contenders, ours)
    return figure


def _alpha_bars(axis: Any, point: Point, contenders: list[str], ours: str | None) -> None:
    for row, entry in enumerate(point.shown):
        colour = colour_of(entry.contender, contenders, ours)
        # The strictest bar in front: what it counts is part of the others.
        for measure, alpha in zip(reversed(ALPHAS.measures), (0.3, 0.6, 1.0), strict=True):
            value = entry.mean(measure)
            if value is not None:
                axis.barh(row, value, color=colour, alpha=alpha, height=0.7)
    axis.set_yticks(range(len(point.shown)), [e.label for e in point.shown])
    axis.invert_yaxis()
    axis.set_xlabel("sessions an hour; dark: within 2x, light: 5x")
    axis.grid(visible=False, axis="y")


def draw(
    drawing: Drawing,
    points: Sequence[Point],
    knees_per_s: Mapping[str, float],
    ours: str | None = None,
) -> Figure:
    """The figure, with a row of panels per machine.

    Args:
        drawing: what is shown.
        points: all points.
        knees_per_s: load at the knee, by machine, where it is known.
        ours: label of the contender in front.
    """
    machines = list(dict.fromkeys(p.machine for p in points))
    contenders = list(dict.fromkeys(e.contender for p in points for e in p.entries))
    is_sweep = any(sum(p.machine == m for p in points) > 1 for m in machines)
    widest = max(len(p.shown) for p in points)
    row_inches = 3.0 if is_sweep else 0.22 * widest + 0.9
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(WIDTH_INCHES, row_inches * len(machines) + 0.6), layout="constrained"
        )
        grid = figure.subplots(len(machines), len(drawing.measures), squeeze=False)
        for row, machine in enumerate(machines):
            here = [p for p in points if p.machine == machine]
            for column, measure in enumerate(drawing.measures):
                axis = grid[row, column]
                axis.set_title(f"{machine}: {MEASURES[measure].label}")
                if is_sweep:
                    _lines(axis, here, contenders, measure, ours)
                    if machine in knees_per_s:
                        axis.axvline(knees_per_s[machine], color="#d55e00", lw=0.8, ls=":")
                else:
                    _bars(axis, here[0], contenders, measure, ours)
        if is_sweep:
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _lines(
    axis: Any, points: Sequence[Point], contenders: list[str], measure: str, ours: str | None
) -> None:
    for index, contender in enumerate(contenders):
        colour = colour_of(contender, contenders, ours)
        own = [(p.rate_per_s, p.own(contender)) for p in points]
        capped = [(p.rate_per_s, p.best_cap(contender)) for p in points]
        _line(axis, own, measure, contender, color=colour, marker=MARKS[index % len(MARKS)])
        _line(axis, capped, measure, f"{contender}, best cap", color=colour, linestyle="--")
    bounds = [(p.rate_per_s, b) for p in points if (b := p.lower_bound_s) is not None]
    if measure == "sct_mean_s" and bounds:
        axis.plot(*zip(*bounds, strict=True), color="#7f7f7f", ls=":", lw=1.2, label="lower bound")
    axis.set_xlabel("sessions arriving per second")
    axis.set_ylim(bottom=0)
    _percent(axis.yaxis, measure)


def _line(
    axis: Any, line: list[tuple[float, Entry | None]], measure: str, label: str, **look: Any
) -> None:
    known = [(x, e.interval(measure)) for x, e in line if e is not None]
    drawn = [(x, i) for x, i in known if i is not None]
    if not drawn:
        return
    xs = [x for x, _ in drawn]
    width = 2.4 if look["color"] == OURS else 1.2
    axis.plot(xs, [i.estimate for _, i in drawn], label=label, lw=width, markersize=3.5, **look)
    bounded = [(x, i.low, i.high) for x, i in drawn if i.low is not None and i.high is not None]
    if bounded and look["color"] == OURS:
        xs, low, high = zip(*bounded, strict=True)
        axis.fill_between(xs, low, high, color=look["color"], alpha=0.1, lw=0)


def _bars(axis: Any, point: Point, contenders: list[str], measure: str, ours: str | None) -> None:
    shown = point.shown
    for row, entry in enumerate(shown):
        found = entry.interval(measure)
        if found is None:
            continue
        colour = colour_of(entry.contender, contenders, ours)
        alpha = 1.0 if entry.cap is None else 0.45
        axis.barh(row, found.estimate, color=colour, alpha=alpha)
        if found.low is not None and found.high is not None:
            axis.plot([found.low, found.high], [row, row], color="#555555", lw=1)
    axis.set_yticks(range(len(shown)), [e.label for e in shown])
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.grid(visible=False, axis="y")
    _percent(axis.xaxis, measure)


def _percent(axis: Any, measure: str) -> None:
    if MEASURES[measure].form.endswith("%"):
        axis.set_major_formatter(PercentFormatter(1.0))
