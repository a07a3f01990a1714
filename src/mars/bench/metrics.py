# SPDX-License-Identifier: Apache-2.0
"""Measures of a run: pure functions over session records, for replay and simulator alike.

Percentiles are numpy's linear interpolation. Only finished sessions count for completion
times and goodput; a failed one lowers the rates by being absent, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mars.bench.result import RunTotals, SessionRecord, Summary

ALPHAS = (2.0, 3.0, 5.0)
"""Goodput bars. 3 is the MARS paper's (arXiv 2604.26963); 2 and 5 show its neighbourhood."""
SECONDS_PER_HOUR = 3600.0


def percentile(values: Sequence[float], q: float) -> float | None:
    """The ``q``-th percentile (0..100), or None of no values."""
    return float(np.percentile(values, q)) if len(values) else None


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None of no values."""
    return float(np.mean(values)) if len(values) else None


def finished(sessions: Iterable[SessionRecord]) -> list[SessionRecord]:
    """The sessions that ran to their end."""
    return [s for s in sessions if s.sct_s is not None and s.error is None]


def completion_times_s(sessions: Iterable[SessionRecord]) -> list[float]:
    """Completion times (seconds) of the finished sessions, in the given order."""
    return [s.sct_s for s in finished(sessions) if s.sct_s is not None]


def slowdowns(sessions: Iterable[SessionRecord]) -> list[float]:
    """Completion time over ideal time of the finished sessions that have an ideal."""
    return [x for s in finished(sessions) if (x := s.slowdown) is not None]


def goodput_per_h(sessions: Iterable[SessionRecord], alpha: float, duration_s: float) -> float:
    """Sessions per hour that finished within ``alpha`` times their ideal time."""
    num_good = sum(1 for x in slowdowns(sessions) if x <= alpha)
    return _rate(num_good, duration_s) * SECONDS_PER_HOUR


def jain_index(values: Sequence[float]) -> float | None:
    """Jain, Chiu & Hawe 1984: (sum x)^2 / (n sum x^2); 1 is equal shares, 1/n the worst."""
    total_squares = float(np.sum(np.square(values))) if len(values) else 0.0
    if not total_squares:
        return None
    return float(np.sum(values)) ** 2 / (len(values) * total_squares)


def ttfts_s(sessions: Iterable[SessionRecord]) -> list[float]:
    """Time to first token (seconds) of every turn that had one."""
    return [t.ttft_s for s in sessions for t in s.turns if t.ttft_s is not None]


def prefix_hit_rate(sessions: Sequence[SessionRecord], totals: RunTotals) -> float | None:
    """Prompt tokens found in the prefix cache over prompt tokens asked for.

    The engine's own counters are preferred: they are what vLLM's metrics report.
    """
    hits, queries = totals.prefix_hits_tokens, totals.prefix_queries_tokens
    if hits is None or queries is None:
        hits = sum(s.cached_tokens for s in sessions)
        queries = sum(s.prompt_tokens for s in sessions)
    return hits / queries if queries else None


def summarise(sessions: Sequence[SessionRecord], totals: RunTotals) -> Summary:
    """All measures of one run.

    Args:
        sessions: every session of the run, failed ones too. TTFT needs their turns.
        totals: duration, engine counters and utilisation of the run.
    """
    done = finished(sessions)
    scts, slow, ttft = completion_times_s(done), slowdowns(done), ttfts_s(sessions)
    duration_s = totals.duration_s
    return Summary(
        sessions=len(sessions),
        sessions_failed=len(sessions) - len(done),
        duration_s=duration_s,
        sct_mean_s=mean(scts),
        sct_p50_s=percentile(scts, 50),
        sct_p90_s=percentile(scts, 90),
        sct_p95_s=percentile(scts, 95),
        sct_p99_s=percentile(scts, 99),
        slowdown_mean=mean(slow),
        slowdown_p95=percentile(slow, 95),
        ttft_p50_s=percentile(ttft, 50),
        ttft_p99_s=percentile(ttft, 99),
        goodput={f"{a:g}": goodput_per_h(done, a, duration_s) for a in ALPHAS},
        sessions_per_h=_rate(len(done), duration_s) * SECONDS_PER_HOUR,
        output_tokens_per_s=_rate(sum(s.output_tokens for s in sessions), duration_s),
        computed_tokens=_total(totals.computed_tokens, (s.computed_tokens for s in sessions)),
        recomputed_tokens=_total(totals.recomputed_tokens, (s.recomputed_tokens for s in sessions)),
        prefix_hit_rate=prefix_hit_rate(sessions, totals),
        preemptions=_total(totals.preemptions, (s.preemptions for s in sessions)),
        gpu_busy=totals.gpu_busy,
        cpu_busy=totals.cpu_busy,
        fairness_jain=jain_index([1 / x for x in slow if x > 0]),
    )


def _rate(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _total(counted: int | None, parts: Iterable[int]) -> int:
    return sum(parts) if counted is None else counted
