# SPDX-License-Identifier: Apache-2.0
"""The knee: the load at which the strongest baseline's mean slowdown is 3.

The strongest baseline of a point is the one with the lowest mean completion time there,
under its own admission or under the static cap that an oracle picks for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from mars.bench.experiment_plan import Experiment
from mars.bench.experiment_table import KNEE_SLOWDOWN, Entry, Point

TOLERANCE = 0.4
"""A load whose slowdown is so close to 3 is taken for the knee: seeds differ by more."""
MAX_TRIALS = 3
"""Loads tried per machine beyond the file's."""


def strongest(point: Point, baselines: Sequence[str]) -> Entry | None:
    """The baseline with the lowest mean completion time, with or without a cap."""
    known = [
        (mean, entry)
        for entry in point.shown
        if entry.contender in baselines and (mean := entry.mean("sct_mean_s")) is not None
    ]
    return min(known, key=lambda pair: pair[0])[1] if known else None


def slowdown(point: Point, baselines: Sequence[str]) -> float | None:
    """Mean slowdown of the strongest baseline."""
    entry = strongest(point, baselines)
    return None if entry is None else entry.mean("slowdown_mean")


def knee_point(here: Sequence[Point], baselines: Sequence[str]) -> Point | None:
    """The point of one machine that is at the knee; None: no load that was run is."""
    known = [(abs(s - KNEE_SLOWDOWN), p) for p in here if (s := slowdown(p, baselines)) is not None]
    if not known:
        return None
    off, point = min(known, key=lambda pair: pair[0])
    return point if off <= TOLERANCE else None


def next_load(here: Sequence[Point], baselines: Sequence[str]) -> float | None:
    """The load to try next, by interpolation between the loads around the knee.

    None: one is at the knee already, or it is not in the range that was run.
    """
    if knee_point(here, baselines) is not None:
        return None
    curve = [(p.rate_per_s, s) for p in here if (s := slowdown(p, baselines)) is not None]
    for (below, low), (above, high) in pairwise(curve):
        if low < KNEE_SLOWDOWN <= high:
            # Slowdown grows about exponentially with load around saturation.
            share = math.log(KNEE_SLOWDOWN / low) / math.log(high / low)
            rate = float(f"{below + share * (above - below):.3g}")
            return None if rate in (below, above) else rate
    return None


def further_loads(
    experiment: Experiment, found: Sequence[Point], tried: Mapping[str, Sequence[float]]
) -> dict[str, list[float]] | None:
    """Loads to run in all, with those to try next; None when nothing is left to try.

    Args:
        experiment: the file.
        found: points so far, by ascending load per machine.
        tried: loads beyond the file's that were run, by machine.
    """
    if not experiment.finds_knee:
        return None
    wanted = {name: list(rates) for name, rates in tried.items()}
    has_news = False
    for box in experiment.machines:
        own = wanted.setdefault(box.label, [])
        here = [p for p in found if p.machine == box.label]
        rate = next_load(here, experiment.baselines) if len(own) < MAX_TRIALS else None
        if rate is not None and rate not in own:
            own.append(rate)
            has_news = True
    return wanted if has_news else None
