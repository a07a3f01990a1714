# SPDX-License-Identifier: Apache-2.0
"""The answer of ``mars size`` as rows, JSON (``mars.size/1``) and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mars.bench.size import CROWDED, SCHEMA, Answer, Load, ServiceLevel

HEADS = (
    "machine",
    "sessions/h",
    "at once",
    "more",
    "GPU busy",
    "tool slots busy",
    "computed again",
)


def rows(answers: Sequence[Answer]) -> list[list[str]]:
    """A row a machine; the first is the one asked about."""
    base = answers[0].sessions_per_h
    return [_row(answer, base) for answer in answers]


def _row(answer: Answer, base_per_h: float | None) -> list[str]:
    found, active = answer.sessions_per_h, answer.num_active
    if found is None or active is None:
        return [answer.box.label, *("-" for _ in HEADS[1:])]
    more = "" if base_per_h is None else f"{gain(answer, base_per_h):+.0%}"
    near = min(answer.trials, key=lambda t: abs(t.sessions_per_h - found))
    shares = [f"{x:.0%}" for x in (near.gpu_busy, near.cpu_busy, near.recompute_share)]
    return [answer.box.label, f"{found:.0f}", f"{active:.1f}", more, *shares]


def gain(answer: Answer, base_per_h: float) -> float:
    """Share by which a machine carries more than the base."""
    return (answer.sessions_per_h or 0.0) / base_per_h - 1.0


def notes(answers: Sequence[Answer], load: Load) -> list[str]:
    """What to know before relying on the numbers."""
    found: list[str] = []
    for answer in answers:
        if answer.sessions_per_h is None:
            met = [t.sessions_per_h for t in answer.trials if t is answer.trials[-1]]
            at = f"{met[0]:.0f}/h" if met else "the lightest load"
            found.append(f"{answer.box.label}: not decided up to {at}; loosen --slo or the trace")
        elif (answer.num_active or 0.0) > CROWDED * load.num_sessions:
            found.append(
                f"{answer.box.label}: {answer.num_active:.0f} sessions at once of "
                f"{load.num_sessions} in all: mostly beginning and end; raise --sessions"
            )
    return found


def tree(
    answers: Sequence[Answer], level: ServiceLevel, load: Load, seeds: Sequence[int]
) -> dict[str, Any]:
    """Everything, as JSON."""
    base = answers[0].sessions_per_h
    return {
        "schema": SCHEMA,
        "service_level": {"alpha": level.alpha, "share": level.share},
        "load": asdict(load),
        "seeds": list(seeds),
        "config": asdict(answers[0].box.config),
        "machines": [
            {
                "label": a.box.label,
                "gpus": a.box.num_gpus,
                "cpus": a.box.num_cpus,
                "kv_tokens_per_gpu": a.box.kv_tokens,
                "sessions_per_h": _rounded(a.sessions_per_h),
                "sessions_at_once": _rounded(a.num_active),
                "gain": _rounded(gain(a, base)) if base and a.sessions_per_h else None,
                "trials": [{k: _rounded(v) for k, v in asdict(t).items()} for t in a.trials],
            }
            for a in answers
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def draw(answers: Sequence[Answer], level: ServiceLevel) -> Any:
    """Share within the bar against load, a line a machine; and what each carries."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from mars.bench.experiment_plots import COLOURS, MARKS
    from mars.bench.plots import STYLE, WIDTH_INCHES

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for index, answer in enumerate(answers):
            look = {"color": COLOURS[index], "marker": MARKS[index], "lw": 1.3, "markersize": 3.5}
            xs = [t.sessions_per_h for t in answer.trials]
            left.plot(xs, [t.share for t in answer.trials], label=answer.box.label, **look)
            right.barh(index, answer.sessions_per_h or 0.0, color=COLOURS[index])
        left.axhline(level.share, color="#7f7f7f", ls=":", lw=1)
        left.set_xscale("log")
        left.set_xlabel("sessions arriving per hour")
        left.set_title(f"Share within {level.alpha:g}x their time alone")
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        left.legend()
        right.set_yticks(range(len(answers)), [a.box.label for a in answers])
        right.invert_yaxis()
        right.grid(visible=False, axis="y")
        right.set_title("Sessions an hour within the service level")
    return figure
