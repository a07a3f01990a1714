# SPDX-License-Identifier: Apache-2.0
"""Targets that an experiment is held to: each with what was measured, and met or missed.

The targets are fixed before any run. "As published" is a baseline under its own admission,
without a cap from outside. "Strongest" is the baseline with the lowest mean completion time
at that very point, its best cap included. Every ratio is one of means over paired seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mars.bench.experiment_knee import knee_point, slowdown, strongest
from mars.bench.experiment_plan import Box, Experiment
from mars.bench.experiment_table import KNEE_SLOWDOWN, Entry, Point, ratio
from mars.bench.stats import Interval

PUBLISHED = (("sct_mean_s", 2.0), ("sct_p95_s", 1.5), ("goodput_3", 2.0))
"""At overload, against every baseline as published."""
PLAIN_FCFS = 4.0
"""At overload, on the mean, against FCFS without any admission."""
KNEE = (("sct_mean_s", 1.3), ("sct_p95_s", 1.2), ("slowdown_mean", 1.1))
"""At the knee, against the strongest baseline; the last is a floor."""
MIN_MEAN = 1.0
"""On the mean, at every load, against the strongest baseline."""
MIN_THROUGHPUT = 0.98
"""Of the highest throughput of any baseline at the same load."""
LOW_LOAD = 0.01
"""Deviation from FCFS where nothing competes."""
UNIQUE_MEAN = 2.0
"""128 unique sessions: half of FCFS's mean completion time."""
CLOSED = 0.5
"""Of the gap between the strongest baseline and the lower bound."""
TIER = (1.2, 2.0)
"""On the mean beyond low load, against the strongest baseline with and without host memory."""
TIER_HITS = 0.95
MISLED = 0.05
"""Most that missing or wrong tool names may cost."""

NAMES = {"sct_mean_s": "mean", "sct_p95_s": "P95", "goodput_3": "goodput@3"} | {
    "slowdown_mean": "mean slowdown",
    "ttft_p99_s": "P99 TTFT",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table; ``is_met`` is None where it could not be measured."""

    text: str
    place: str
    measured: str
    is_met: bool | None

    @property
    def verdict(self) -> str:
        """As shown."""
        return {True: "met", False: "missed", None: "not measured"}[self.is_met]


def targets(experiment: Experiment, found: Sequence[Point]) -> list[Target]:
    """All targets that this experiment can speak of; none without ``ours``."""
    if experiment.ours is None:
        return []
    out: list[Target] = []
    for box in experiment.machines:
        here = [p for p in found if p.machine == box.label]
        if here:
            out += _machine_targets(experiment, here)
    return [*out, *_tier(experiment, found)]


def closed_share(point: Point, experiment: Experiment) -> float | None:
    """How much of the gap between the strongest baseline and the bound ours closes.

    None where there is no gap to speak of (the bound within 1% of that baseline).
    """
    base, ours = _pair(point, experiment)
    bound_s = point.lower_bound_s
    theirs_s = None if base is None else base.mean("sct_mean_s")
    ours_s = None if ours is None else ours.mean("sct_mean_s")
    if bound_s is None or theirs_s is None or ours_s is None or theirs_s < 1.01 * bound_s:
        return None
    return (theirs_s - ours_s) / (theirs_s - bound_s)


def _pair(point: Point, experiment: Experiment) -> tuple[Entry | None, Entry | None]:
    ours = None if experiment.ours is None else point.own(experiment.ours)
    return strongest(point, experiment.baselines), ours


def _machine_targets(experiment: Experiment, here: Sequence[Point]) -> Iterator[Target]:
    top = here[-1]
    over = slowdown(top, experiment.baselines)
    if over is not None and over > KNEE_SLOWDOWN and not top.is_low:
        yield from _overload(experiment, top)
    if experiment.finds_knee:
        yield from _knee(experiment, here)
    yield from _everywhere(experiment, here)
    yield from _low_load(experiment, here)
    if experiment.workload.is_unique:
        yield from _unique(experiment, top)
    yield from _misled(experiment, here)


def _overload(experiment: Experiment, point: Point) -> Iterator[Target]:
    where = f"{_place(point)}, overload"
    _, ours = _pair(point, experiment)
    if ours is None:
        return
    published = [e for n in experiment.baselines if (e := point.own(n)) is not None]
    for measure, goal in PUBLISHED:
        text = f"{NAMES[measure]} >= {goal:g}x better than every baseline as published"
        ratios = [(r, e) for e in published if (r := ratio(ours, e, measure)) is not None]
        yield _least(text, where, ratios, goal)
    plain = [
        (r, e)
        for c in experiment.contenders
        if (c.policy, c.admission) == ("fcfs", "none") and c.label in experiment.baselines
        if (e := point.own(c.label)) is not None
        if (r := ratio(ours, e, "sct_mean_s")) is not None
    ]
    yield _least(f"mean >= {PLAIN_FCFS:g}x better than plain FCFS", where, plain, PLAIN_FCFS)
    yield _closed(experiment, point, where)


def _knee(experiment: Experiment, here: Sequence[Point]) -> Iterator[Target]:
    point = knee_point(here, experiment.baselines)
    if point is None:
        text = "comparison at the knee"
        yield Target(text, here[0].machine, "no load has a mean slowdown near 3", None)
        return
    base, ours = _pair(point, experiment)
    if base is None or ours is None:
        return
    at = slowdown(point, experiment.baselines) or 0.0
    where = f"{_place(point)}, knee (slowdown {at:.2f} of {base.label})"
    for measure, goal in KNEE:
        floor = "floor: " if measure == "slowdown_mean" else ""
        text = f"{floor}{NAMES[measure]} >= {goal:g}x better than the strongest baseline"
        found = ratio(ours, base, measure)
        yield _least(text, where, [] if found is None else [(found, base)], goal)
    yield _closed(experiment, point, where)


def _everywhere(experiment: Experiment, here: Sequence[Point]) -> Iterator[Target]:
    def worst(against: Callable[[Point], Entry | None], measure: str) -> list[tuple[Interval, str]]:
        found: list[tuple[Interval, str]] = []
        for point in here:
            _, ours = _pair(point, experiment)
            other = against(point)
            if ours is not None and other is not None and not point.is_low:
                times = ratio(ours, other, measure)
                if times is not None:
                    found.append((times, f"{other.label} at {point.rate_per_s:g}/s"))
        return found

    def busiest(point: Point) -> Entry | None:
        known = [
            (v, e)
            for e in point.shown
            if e.contender in experiment.baselines and (v := e.mean("sessions_per_h")) is not None
        ]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    machine = here[0].machine
    text = f"mean never below {MIN_MEAN:g}x of the strongest baseline, at any load"
    by_mean = worst(lambda p: strongest(p, experiment.baselines), "sct_mean_s")
    yield _least_of(text, machine, by_mean, MIN_MEAN)
    text = f"throughput >= {MIN_THROUGHPUT:g} of the highest, at any load"
    yield _least_of(text, machine, worst(busiest, "sessions_per_h"), MIN_THROUGHPUT)


def _low_load(experiment: Experiment, here: Sequence[Point]) -> Iterator[Target]:
    text = f"within {LOW_LOAD:.0%} of {experiment.reference} at low load, on the mean"
    for point in here:
        base = point.own(experiment.reference)
        _, ours = _pair(point, experiment)
        if not point.is_low or base is None or ours is None or base is ours:
            continue
        times = ratio(ours, base, "sct_mean_s")
        if times is not None:
            is_met = times.estimate >= 1.0 - LOW_LOAD
            yield Target(text, _place(point), f"{100 * (1 / times.estimate - 1):+.2f}%", is_met)


def _unique(experiment: Experiment, point: Point) -> Iterator[Target]:
    base, (_, ours) = point.own(experiment.reference), _pair(point, experiment)
    if base is None or ours is None:
        return
    for measure, goal in (("sct_mean_s", UNIQUE_MEAN), ("ttft_p99_s", 1.0)):
        found = ratio(ours, base, measure)
        text = f"unique tasks: {NAMES[measure]} >= {goal:g}x better than {base.label}"
        yield _least(text, _place(point), [] if found is None else [(found, base)], goal)


def _misled(experiment: Experiment, here: Sequence[Point]) -> Iterator[Target]:
    for contender in experiment.contenders:
        if contender.tool_names == "recorded" or not contender.is_variant:
            continue
        ratios: list[tuple[Interval, str]] = []
        for point in here:
            _, ours = _pair(point, experiment)
            misled = point.own(contender.label)
            if ours is not None and misled is not None:
                times = ratio(misled, ours, "sct_mean_s")
                if times is not None:
                    ratios.append((times, f"{contender.label} at {point.rate_per_s:g}/s"))
        text = f"{contender.tool_names} tool names cost <= {MISLED:.0%} of the mean"
        yield _least_of(text, here[0].machine, ratios, 1.0 / (1.0 + MISLED))


def _tier(experiment: Experiment, found: Sequence[Point]) -> Iterator[Target]:
    """What host memory is worth, on machines that differ in nothing else."""
    for box in experiment.machines:
        plain = next((b for b in experiment.machines if _is_without(b, box)), None)
        if plain is None:
            continue
        for point in (p for p in found if p.machine == box.label):
            other = next((p for p in found if _is_beside(p, point, plain.label)), None)
            if other is not None:
                yield from _tier_point(experiment, point, other)


def _tier_point(experiment: Experiment, point: Point, plain: Point) -> Iterator[Target]:
    base, ours = _pair(point, experiment)
    plain_base, plain_ours = _pair(plain, experiment)
    if ours is None:
        return
    beaten: list[tuple[str, Entry | None, float]] = [
        (f"mean no slower than without host memory, within {LOW_LOAD:.0%}", plain_ours, 0.99)
    ]
    if not point.is_low:
        text = "mean >= {:g}x better than the strongest baseline {} host memory"
        beaten.append((text.format(TIER[0], "with"), base, TIER[0]))
        beaten.append((text.format(TIER[1], "without"), plain_base, TIER[1]))
    for text, other, goal in beaten:
        times = None if other is None else ratio(ours, other, "sct_mean_s")
        yield _least(
            text, _place(point), [] if times is None or other is None else [(times, other)], goal
        )
    hits = ours.mean("prefix_hit_rate")
    if hits is not None:
        text = f"at least {TIER_HITS:.0%} of the prompt tokens found on the GPU or in host memory"
        yield Target(text, _place(point), f"{hits:.1%}", hits >= TIER_HITS)


def _is_without(plain: Box, box: Box) -> bool:
    """Whether the first machine is the second without its host memory."""
    same = replace(box, label=plain.label, host_kv_tokens=plain.host_kv_tokens)
    return bool(box.host_kv_tokens) and not plain.host_kv_tokens and same == plain


def _is_beside(point: Point, other: Point, machine: str) -> bool:
    return point.machine == machine and point.rate_per_s == other.rate_per_s


def _closed(experiment: Experiment, point: Point, where: str) -> Target:
    share = closed_share(point, experiment)
    text = f"at least {CLOSED:.0%} of the gap between the strongest baseline and the bound closed"
    if share is None:
        return Target(text, where, "no gap", None)
    return Target(text, where, f"{share:.0%}", share >= CLOSED)


def _least(text: str, where: str, ratios: Sequence[tuple[Interval, Entry]], goal: float) -> Target:
    return _least_of(text, where, [(times, entry.label) for times, entry in ratios], goal)


def _least_of(text: str, where: str, ratios: Sequence[tuple[Interval, str]], goal: float) -> Target:
    if not ratios:
        return Target(text, where, "-", None)
    times, label = min(ratios, key=lambda pair: pair[0].estimate)
    bounds = "" if times.low is None else f" [{times.low:.3f}, {times.high:.3f}]"
    return Target(text, where, f"{times.estimate:.3f}{bounds} ({label})", times.estimate >= goal)


def _place(point: Point) -> str:
    return f"{point.machine}, {point.rate_per_s:g}/s"
