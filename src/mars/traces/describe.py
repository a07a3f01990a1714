# SPDX-License-Identifier: Apache-2.0
"""What a trace looks like: the statistics one compares workloads by, as numbers and as a table.

``describe(sessions)`` gives a :class:`Description` (``.table()`` for people, msgspec for JSON);
``compare(left, right)`` the Kolmogorov-Smirnov distance of every statistic both traces have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mars.traces.content import common_prefix_tokens, layout
from mars.traces.errors import TraceError
from mars.traces.schema import TraceSession

SCHEMA = "mars.describe/1"
OUTPUT_TOKEN_S = 0.02
"""Assumed time per output token where tool time is put into proportion (50 tokens/s)."""
MIN_CLASS_CALLS = 5
"""Tool classes with fewer calls get no line of their own."""

Samples = dict[str, NDArray[np.float64]]


class Quantiles(Struct, frozen=True, kw_only=True):
    """One statistic over all its samples."""

    count: int
    mean: float
    p10: float
    p50: float
    p90: float
    p99: float
    max: float


class Description(Struct, frozen=True, kw_only=True):
    """A trace in numbers; ``statistics`` by name, shares between 0 and 1.

    Attributes:
        intra_session_hit: prompt tokens that the same session's previous turn already had.
        tool_share: tool seconds / (tool seconds + 0.02 s per output token).
        top1_tool_share: tool seconds spent in the longest 1% of calls.
        top1_cpu_share: CPU seconds spent in the costliest 1% of calls.
        arrival_rate: sessions per second; None where all arrive together.
        arrival_cv: coefficient of variation of the gaps between arrivals.
        arrival_dispersion: variance over mean of the arrivals per minute.
    """

    schema: str = SCHEMA
    num_sessions: int
    num_turns: int
    num_tool_calls: int
    prompt_tokens: int
    output_tokens: int
    tool_s: float
    cpu_s: float
    intra_session_hit: float
    tool_share: float
    top1_tool_share: float
    top1_cpu_share: float
    arrival_rate: float | None
    arrival_cv: float | None
    arrival_dispersion: float | None
    statistics: dict[str, Quantiles]

    def table(self) -> str:
        """Return the description as aligned text."""
        plain = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name not in {"schema", "statistics"}
        }
        lines = [f"{name:<32}{_number(value):>12}" for name, value in plain.items()]
        columns = ("count", "mean", "p10", "p50", "p90", "p99", "max")
        lines += ["", f"{'statistic':<32}" + "".join(f"{column:>10}" for column in columns)]
        for name, row in self.statistics.items():
            cells = "".join(f"{_number(getattr(row, column)):>10}" for column in columns)
            lines.append(f"{name:<32}{cells}")
        return "\n".join(lines)


class Distance(Struct, frozen=True, kw_only=True):
    """How far two traces are apart in one statistic (two-sample Kolmogorov-Smirnov, 0 to 1)."""

    statistic: str
    ks: float
    num_left: int
    num_right: int


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def describe(sessions: Iterable[TraceSession]) -> Description:
    """Return the statistics of a trace.

    Raises:
        TraceError: no session has a turn.
    """
    known = [session for session in sessions if session.turns]
    if not known:
        raise TraceError("no session has recorded turns, so there is nothing to describe.")
    found = samples(known)
    tools, cpus = found["tool_s"], found["tool_cpu_s"]
    rate, cv, dispersion = _arrivals(known)
    output_tokens = float(found["output_tokens"].sum())
    prompt_tokens = float(found["prompt_tokens"].sum())
    tool_s = float(tools.sum())
    return Description(
        num_sessions=len(known),
        num_turns=len(found["prompt_tokens"]),
        num_tool_calls=len(tools),
        prompt_tokens=int(prompt_tokens),
        output_tokens=int(output_tokens),
        tool_s=tool_s,
        cpu_s=float(cpus.sum()),
        intra_session_hit=float(found["reused_tokens"].sum()) / prompt_tokens,
        tool_share=tool_s / (tool_s + output_tokens * OUTPUT_TOKEN_S),
        top1_tool_share=_top_share(tools),
        top1_cpu_share=_top_share(cpus),
        arrival_rate=rate,
        arrival_cv=cv,
        arrival_dispersion=dispersion,
        statistics={name: quantiles(values) for name, values in found.items() if len(values)},
    )


def quantiles(values: NDArray[np.float64]) -> Quantiles:
    """Return the quantiles of at least one value."""
    p10, p50, p90, p99 = np.quantile(values, (0.1, 0.5, 0.9, 0.99)).tolist()
    return Quantiles(
        count=len(values),
        mean=float(values.mean()),
        p10=p10,
        p50=p50,
        p90=p90,
        p99=p99,
        max=float(values.max()),
    )


def samples(sessions: Sequence[TraceSession]) -> Samples:
    """Return every statistic's samples, by name; ``tool_s[NAME]`` per class of tool."""
    found: dict[str, list[float]] = {name: [] for name in _STATISTICS}
    by_class: dict[str, list[float]] = defaultdict(list)
    for session in sessions:
        _count_session(session, found)
        _count_tokens(session, found)
        for turn in session.turns:
            found["tool_calls_per_turn"].append(len(turn.tools))
            for tool in turn.tools:
                found["tool_s"].append(tool.duration_s)
                found["tool_cpu_s"].append(tool.cpu_s)
                by_class[f"tool_s[{tool.name}]"].append(tool.duration_s)
    found["shared_first_tokens"] = _shared_first_tokens(sessions)
    frequent = sorted(
        (name for name, calls in by_class.items() if len(calls) >= MIN_CLASS_CALLS),
        key=lambda name: -len(by_class[name]),
    )
    found |= {name: by_class[name] for name in frequent}
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


_STATISTICS = (
    "turns_per_session",
    "tool_calls_per_turn",
    "first_prompt_tokens",
    "shared_first_tokens",
    "prompt_tokens",
    "reused_tokens",
    "append_tokens",
    "output_tokens",
    "peak_tokens",
    "session_output_tokens",
    "session_tool_s",
    "session_cpu_s",
    "gap_s",
    "tool_s",
    "tool_cpu_s",
)


def _count_session(session: TraceSession, found: dict[str, list[float]]) -> None:
    tools = [tool for turn in session.turns for tool in turn.tools]
    found["turns_per_session"].append(len(session.turns))
    found["first_prompt_tokens"].append(session.turns[0].prompt_tokens)
    found["peak_tokens"].append(max(t.prompt_tokens + t.output_tokens for t in session.turns))
    found["session_output_tokens"].append(sum(turn.output_tokens for turn in session.turns))
    found["session_tool_s"].append(sum(tool.duration_s for tool in tools))
    found["session_cpu_s"].append(sum(tool.cpu_s for tool in tools))
    found["gap_s"] += [turn.gap_s for turn in session.turns[:-1]]


def _count_tokens(session: TraceSession, found: dict[str, list[float]]) -> None:
    plan = layout(session)
    for index, turn in enumerate(session.turns):
        found["prompt_tokens"].append(turn.prompt_tokens)
        found["output_tokens"].append(turn.output_tokens)
        if not index:
            continue
        before = (*plan.prompts[index - 1], plan.replies[index - 1])
        found["reused_tokens"].append(common_prefix_tokens(before, plan.prompts[index]))
        grown = turn.prompt_tokens - session.turns[index - 1].prompt_tokens
        if grown > 0:
            found["append_tokens"].append(grown)


def _shared_first_tokens(sessions: Sequence[TraceSession]) -> list[float]:
    """Return, per session, how much of its first prompt some other session also begins with.

    Sorted by content, the prompt that shares most with another stands next to it.
    """
    prompts = sorted(layout(session).prompts[0] for session in sessions)
    if len(prompts) < 2:
        return []
    pairs = [common_prefix_tokens(a, b) for a, b in pairwise(prompts)]
    return [max(left, right) for left, right in zip([0, *pairs], [*pairs, 0], strict=True)]


def _top_share(values: NDArray[np.float64]) -> float:
    total = float(values.sum())
    if not total:
        return 0.0
    num_top = max(1, round(len(values) * 0.01))
    return float(np.sort(values)[-num_top:].sum()) / total


def _arrivals(
    sessions: Sequence[TraceSession],
) -> tuple[float | None, float | None, float | None]:
    times = np.sort([session.arrival_s for session in sessions])
    span_s = float(times[-1] - times[0])
    if not span_s:
        return None, None, None
    gaps = np.diff(times)
    minutes = np.bincount(((times - times[0]) // 60.0).astype(int))
    dispersion = float(minutes.var() / minutes.mean()) if len(minutes) > 1 else None
    return len(gaps) / span_s, float(gaps.std() / gaps.mean()), dispersion


def ks_distance(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Return the largest distance between two empirical distribution functions."""
    both = np.concatenate([left, right])
    below_left = np.searchsorted(np.sort(left), both, side="right") / len(left)
    below_right = np.searchsorted(np.sort(right), both, side="right") / len(right)
    return float(np.abs(below_left - below_right).max())


def compare(left: Iterable[TraceSession], right: Iterable[TraceSession]) -> list[Distance]:
    """Return the distance of every statistic that both traces have samples of."""
    ours = samples([session for session in left if session.turns])
    theirs = samples([session for session in right if session.turns])
    return [
        Distance(
            statistic=name,
            ks=ks_distance(values, theirs[name]),
            num_left=len(values),
            num_right=len(theirs[name]),
        )
        for name, values in ours.items()
        if len(values) and len(theirs.get(name, ()))
    ]


def distance_table(distances: Sequence[Distance]) -> str:
    """Return distances as aligned text."""
    lines = [f"{'statistic':<32}{'KS':>8}{'left':>10}{'right':>10}"]
    lines += [
        f"{d.statistic:<32}{d.ks:>8.3f}{d.num_left:>10,}{d.num_right:>10,}" for d in distances
    ]
    return "\n".join(lines)


def to_json(description: Description) -> bytes:
    """Return the description as JSON, one key a line."""
    return msgspec.json.format(msgspec.json.encode(description), indent=2)
