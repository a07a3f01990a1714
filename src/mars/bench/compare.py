# SPDX-License-Identifier: Apache-2.0
"""Runs of one trace side by side: which measures, in which unit, which way is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mars.bench.metrics import finished
from mars.bench.result import Result, Summary
from mars.bench.stats import Interval, ratio_of_means


@dataclass(frozen=True, slots=True)
class Run:
    """One result under the name it is shown by (usually the policy)."""

    label: str
    result: Result


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the comparison. ``better``: -1 lower, 1 higher, 0 neither."""

    label: str
    read: Callable[[Summary], float | None]
    form: str
    better: int


def _goodput(summary: Summary) -> float | None:
    """Unknown where no session's time alone is."""
    return summary.goodput.get("3") if summary.slowdown_mean is not None else None


MEASURES: tuple[Measure, ...] = (
    Measure("Completion time, mean (s)", lambda s: s.sct_mean_s, ".1f", -1),
    Measure("Completion time, P50 (s)", lambda s: s.sct_p50_s, ".1f", -1),
    Measure("Completion time, P90 (s)", lambda s: s.sct_p90_s, ".1f", -1),
    Measure("Completion time, P95 (s)", lambda s: s.sct_p95_s, ".1f", -1),
    Measure("Slowdown, mean", lambda s: s.slowdown_mean, ".2f", -1),
    Measure("Goodput@3 (sessions/h)", _goodput, ".0f", 1),
    Measure("Throughput (sessions/h)", lambda s: s.sessions_per_h, ".0f", 1),
    Measure("TTFT, P50 (s)", lambda s: s.ttft_p50_s, ".2f", -1),
    Measure("TTFT, P99 (s)", lambda s: s.ttft_p99_s, ".1f", -1),
    Measure("Prefix-cache hit rate", lambda s: s.prefix_hit_rate, ".1%", 1),
    Measure("Tokens computed", lambda s: s.computed_tokens, ",.0f", -1),
    Measure("Tokens recomputed", lambda s: s.recomputed_tokens, ",.0f", -1),
    Measure("Preemptions", lambda s: s.preemptions, ".0f", -1),
    Measure("GPU busy", lambda s: s.gpu_busy, ".0%", 0),
    Measure("Tool slots busy", lambda s: s.cpu_busy, ".0%", 0),
    Measure("Fairness (Jain)", lambda s: s.fairness_jain, ".2f", 1),
    Measure("Sessions failed", lambda s: s.sessions_failed, ".0f", -1),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measure over all runs, as text; ``best`` are the indices of the best runs."""

    label: str
    cells: tuple[str, ...]
    best: frozenset[int]


def rows(runs: Sequence[Run]) -> list[Row]:
    """The comparison table; unknown values show as a dash, and no row where all are."""
    made = [_row(measure, runs) for measure in MEASURES]
    return [row for row in made if any(cell != "-" for cell in row.cells)]


def _row(measure: Measure, runs: Sequence[Run]) -> Row:
    values = [measure.read(run.result.summary) for run in runs]
    cells = tuple("-" if v is None else format(v, measure.form) for v in values)
    known = [v * measure.better for v in values if v is not None]
    best: frozenset[int] = frozenset()
    if measure.better and len(known) > 1 and len(set(cells)) > 1:
        top = max(known)
        best = frozenset(
            i for i, v in enumerate(values) if v is not None and v * measure.better == top
        )
    return Row(measure.label, cells, best)


def speed_up(ours: Run, baseline: Run) -> Interval | None:
    """How many times shorter the mean completion time is than the baseline's.

    Paired over the sessions that finished in both; None when there are none.
    """
    theirs = {s.session_id: s.sct_s for s in finished(baseline.result.sessions)}
    pairs = [
        (s.sct_s, theirs[s.session_id])
        for s in finished(ours.result.sessions)
        if s.session_id in theirs
    ]
    if not pairs:
        return None
    mine = [a for a, _ in pairs if a is not None]
    return ratio_of_means(mine, [b for _, b in pairs if b is not None])


def speed_up_text(ours: Run, baseline: Run) -> str:
    """One sentence: the ratio, its interval, and whether it is decided."""
    found = speed_up(ours, baseline)
    if found is None:
        return f"{ours.label} and {baseline.label} have no finished session in common."
    text = f"{ours.label}: mean completion time {found.estimate:.2f}x shorter than {baseline.label}"
    if found.low is None or found.high is None:
        return f"{text} ({found.num_samples} sessions: too few for an interval)."
    bounds = f"95% interval {found.low:.2f}-{found.high:.2f}, {found.num_samples} paired sessions"
    return f"{text} ({bounds}{'' if found.is_decided else '; not decided'})."


def markdown(runs: Sequence[Run]) -> str:
    """The comparison as a Markdown table, best values in bold."""
    lines = [
        f"| | {' | '.join(run.label for run in runs)} |",
        f"|---|{'---:|' * len(runs)}",
    ]
    for row in rows(runs):
        cells = [f"**{c}**" if i in row.best else c for i, c in enumerate(row.cells)]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
