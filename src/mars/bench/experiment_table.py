# SPDX-License-Identifier: Apache-2.0
"""From cells to comparisons: per point and contender, means over seeds and paired ratios.

Pairs are seeds: one seed is one draw of sessions and arrivals, the same for every contender,
and sessions of one run are not independent of one another. Every ratio is the factor by which
the contender is better than what it is compared with, whichever way the measure points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mars.bench.compare import Measure
from mars.bench.experiment_plan import Experiment
from mars.bench.experiment_store import CellRecord
from mars.bench.result import Summary
from mars.bench.stats import MIN_PAIRS, Interval, mean_over_seeds, ratio_of_means

KNEE_SLOWDOWN = 3.0
"""The load at which mean slowdown reaches this is called the knee."""


class UnequalError(ValueError):
    """Contenders did not run the same sessions; nothing can be compared."""


def _goodput(alpha: str) -> Callable[[Summary], float | None]:
    return lambda s: s.goodput.get(alpha)


def _recompute_share(s: Summary) -> float | None:
    return s.recomputed_tokens / s.computed_tokens if s.computed_tokens else None


MEASURES: dict[str, Measure] = {
    "sct_mean_s": Measure("completion, mean (s)", lambda s: s.sct_mean_s, ".0f", -1),
    "sct_p50_s": Measure("P50 (s)", lambda s: s.sct_p50_s, ".0f", -1),
    "sct_p90_s": Measure("P90 (s)", lambda s: s.sct_p90_s, ".0f", -1),
    "sct_p95_s": Measure("P95 (s)", lambda s: s.sct_p95_s, ".0f", -1),
    "sct_p99_s": Measure("P99 (s)", lambda s: s.sct_p99_s, ".0f", -1),
    "slowdown_mean": Measure("slowdown, mean", lambda s: s.slowdown_mean, ".2f", -1),
    "goodput_2": Measure("goodput@2 (/h)", _goodput("2"), ".1f", 1),
    "goodput_3": Measure("goodput@3 (/h)", _goodput("3"), ".1f", 1),
    "goodput_5": Measure("goodput@5 (/h)", _goodput("5"), ".1f", 1),
    "sessions_per_h": Measure("throughput (/h)", lambda s: s.sessions_per_h, ".1f", 1),
    "ttft_p99_s": Measure("TTFT P99 (s)", lambda s: s.ttft_p99_s, ".1f", -1),
    "prefix_hit_rate": Measure("hit rate", lambda s: s.prefix_hit_rate, ".1%", 1),
    "recomputed_tokens": Measure("recomputed tokens", lambda s: s.recomputed_tokens, ",.0f", -1),
    "recompute_share": Measure("of computed", _recompute_share, ".1%", -1),
    "preemptions": Measure("preemptions", lambda s: s.preemptions, ".1f", -1),
    "fairness_jain": Measure("Jain", lambda s: s.fairness_jain, ".2f", 1),
    "gpu_busy": Measure("GPU busy", lambda s: s.gpu_busy, ".0%", 0),
    "cpu_busy": Measure("tool slots busy", lambda s: s.cpu_busy, ".0%", 0),
    "sessions_failed": Measure("failed", lambda s: s.sessions_failed, ".0f", -1),
}
"""What is reported, by the name it has in ``report.json``."""

RATIOS = ("sct_mean_s", "sct_p95_s", "slowdown_mean", "goodput_3", "sessions_per_h", "ttft_p99_s")
"""Of which measures ratios are shown; ``report.json`` has all."""
ORACLE = "sct_mean_s"
"""The best static cap of a contender at a point is the one with the lowest of this."""


@dataclass(slots=True)
class Entry:
    """One contender at one point: under its own admission, or under one static cap.

    ``values`` hold one number per seed, None where a run has none. ``to_reference`` and
    ``to_best_cap`` (by contender) hold ratios by measure; above 1 is better.
    """

    contender: str
    cap: int | None
    seeds: list[int]
    values: dict[str, list[float | None]]
    errors: list[str] = field(default_factory=list)
    is_best_cap: bool = False
    to_reference: dict[str, Interval] = field(default_factory=dict)
    to_best_cap: dict[str, dict[str, Interval]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As shown: the cap, if any, behind the name."""
        return self.contender if self.cap is None else f"{self.contender}, cap {self.cap}"

    def interval(self, measure: str) -> Interval | None:
        """Mean over seeds, with bounds from three seeds on; None where a seed has no value."""
        known = [v for v in self.values.get(measure, ()) if v is not None]
        if not known or len(known) < len(self.seeds):
            return None
        if len(known) >= MIN_PAIRS:
            return mean_over_seeds(known)
        # Student's factor for two is 12.7: such bounds would only hide the figures.
        mean = float(np.mean(known))
        return Interval(estimate=mean, low=None, high=None, num_samples=len(known))

    def mean(self, measure: str) -> float | None:
        """Mean over seeds alone."""
        known = [v for v in self.values.get(measure, ()) if v is not None]
        return float(np.mean(known)) if known and len(known) == len(self.seeds) else None


@dataclass(slots=True)
class Point:
    """One machine at one load, and everyone who ran there on the same seeds."""

    machine: str
    rate_per_s: float
    is_low: bool
    seeds: list[int]
    entries: list[Entry]
    lower_bounds_s: list[float] = field(default_factory=list[float])
    """By seed: mean completion time that no schedule can beat."""

    @property
    def lower_bound_s(self) -> float | None:
        """Mean over seeds; None where it is not known for all."""
        known = self.lower_bounds_s
        return float(np.mean(known)) if known and len(known) == len(self.seeds) else None

    def own(self, contender: str) -> Entry | None:
        """A contender under its own admission."""
        return next((e for e in self.entries if e.contender == contender and e.cap is None), None)

    def best_cap(self, contender: str) -> Entry | None:
        """A contender under the static cap that suits it best here."""
        return next((e for e in self.entries if e.contender == contender and e.is_best_cap), None)

    @property
    def shown(self) -> list[Entry]:
        """Everyone's own admission, each followed by its best cap."""
        found: list[Entry] = []
        for entry in self.entries:
            if entry.cap is None:
                best = self.best_cap(entry.contender)
                found += [entry] if best is None else [entry, best]
        return found


def points(
    experiment: Experiment,
    records: Iterable[CellRecord],
    seeds: Sequence[int],
    knees: Mapping[str, Sequence[float]] | None = None,
) -> list[Point]:
    """Compare what has been run: per point, the seeds that everyone there has finished.

    Args:
        experiment: the file.
        records: finished cells.
        seeds: which count.
        knees: loads beyond the file's, by machine.

    Raises:
        UnequalError: contenders of a point ran different sessions.
    """
    by_place: dict[tuple[str, float], list[CellRecord]] = defaultdict(list)
    for record in records:
        if record.seed in seeds:
            by_place[record.machine, record.rate_per_s].append(record)
    load, found = experiment.workload, list[Point]()
    for box in experiment.machines:
        for rate in sorted({*load.rates, *(knees or {}).get(box.label, ())}):
            point = _point(experiment, box.label, rate, by_place[box.label, rate])
            if point.seeds:
                found.append(point)
    return found


def _point(experiment: Experiment, machine: str, rate: float, ran: list[CellRecord]) -> Point:
    _check_equal(ran)
    expected = [
        (c.label, cap)
        for c in experiment.contenders
        for cap in (None, *(experiment.caps if c.is_swept else ()))
    ]
    cells = {(r.contender, r.cap, r.seed): r for r in ran}
    seeds = sorted(s for s in {r.seed for r in ran} if all((*e, s) in cells for e in expected))
    is_low = rate == experiment.workload.low_rate_per_s
    entries = [_entry(name, cap, [cells[name, cap, s] for s in seeds]) for name, cap in expected]
    bounds = [cells[*expected[0], s].lower_bound_s for s in seeds]
    known = [bound for bound in bounds if bound is not None]
    point = Point(machine, rate, is_low, seeds, entries, known)
    if seeds:
        _mark_best_caps(point)
        _compare(point, experiment.reference)
    return point


def _check_equal(ran: Iterable[CellRecord]) -> None:
    hashes: dict[int, CellRecord] = {}
    for record in ran:
        first = hashes.setdefault(record.seed, record)
        if first.sessions_hash != record.sessions_hash:
            raise UnequalError(
                f"{record.contender} and {first.contender} ran different sessions on "
                f"{record.machine} at {record.rate_per_s:g}/s, seed {record.seed}; "
                "remove cells.jsonl and run again"
            )


def _entry(contender: str, cap: int | None, ran: list[CellRecord]) -> Entry:
    values = {
        name: [None if r.summary is None else measure.read(r.summary) for r in ran]
        for name, measure in MEASURES.items()
    }
    errors = [f"seed {r.seed}: {r.error}" for r in ran if r.error]
    return Entry(contender, cap, [r.seed for r in ran], values, errors)


def _mark_best_caps(point: Point) -> None:
    """An oracle's choice, by the very seeds that are reported: it flatters the baseline."""
    best: dict[str, tuple[float, Entry]] = {}
    for entry in point.entries:
        score = entry.mean(ORACLE)
        if entry.cap is None or score is None:
            continue
        if entry.contender not in best or score < best[entry.contender][0]:
            best[entry.contender] = (score, entry)
    for _, entry in best.values():
        entry.is_best_cap = True


def ratio(ours: Entry, theirs: Entry, measure: str) -> Interval | None:
    """By which factor one is better than another at the same point, in one measure."""
    return _ratios(ours, theirs, (measure,)).get(measure)


def _compare(point: Point, reference: str) -> None:
    base = point.own(reference)
    capped = [e for e in point.entries if e.is_best_cap]
    for entry in point.shown:
        if base is not None:
            entry.to_reference = _ratios(entry, base, MEASURES)
        if entry.cap is None:
            for other in capped:
                entry.to_best_cap[other.contender] = _ratios(entry, other, RATIOS)


def _ratios(ours: Entry, theirs: Entry, names: Iterable[str]) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for name in names:
        better = MEASURES[name].better
        x = [v for v in ours.values[name] if v is not None]
        y = [v for v in theirs.values[name] if v is not None]
        if not better or len(x) < len(ours.seeds) or len(y) < len(theirs.seeds):
            continue
        low, high = (x, y) if better < 0 else (y, x)
        # A resampled mean of zero has no ratio: nothing is said rather than something wrong.
        if min(low) > 0:
            found[name] = ratio_of_means(low, high)
    return found


def knee_per_s(points_of: Sequence[Point], contender: str, *, is_capped: bool) -> float | None:
    """The load at which a contender's mean slowdown reaches 3, interpolated; None: not in range.

    Args:
        points_of: points of one machine, by ascending load.
        contender: who.
        is_capped: under its best cap of each point.
    """
    last: tuple[float, float] | None = None
    for point in points_of:
        entry = point.best_cap(contender) if is_capped else point.own(contender)
        slowdown = entry.mean("slowdown_mean") if entry is not None else None
        if slowdown is None:
            continue
        if slowdown >= KNEE_SLOWDOWN:
            if last is None:
                return None
            rate, below = last
            share = (KNEE_SLOWDOWN - below) / (slowdown - below)
            return rate + share * (point.rate_per_s - rate)
        last = (point.rate_per_s, slowdown)
    return None
