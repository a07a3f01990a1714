# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: one HTML file that needs nothing else, and its Markdown."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mars.bench import plots
from mars.bench.compare import Run, markdown, rows, speed_up_text
from mars.bench.plots import PlottedRun
from mars.bench.result import ReplayQuality, Result

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead { color: #444; margin-top: 0; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem; border-bottom: 1px solid #e4e4e4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #1a1a1a; }
td.best { font-weight: 650; color: #005a8c; }
.note { border-left: 4px solid #b0b0b0; background: #f6f6f6; padding: .5rem .9rem;
        margin: .6rem 0; }
.degraded { border-color: #e69f00; background: #fff8e8; }
.refused { border-color: #d55e00; background: #fff0ea; }
pre { background: #f6f6f6; padding: .7rem .9rem; overflow-x: auto; font-size: 12.5px; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; }
"""

_FIGURES = (
    (
        "Where the sessions' time goes",
        plots.session_timelines,
        (
            "One lane per session in order of arrival, the same sessions in every panel; a bar "
            "ends a finished session, a cross one that failed."
        ),
    ),
    (
        "The mean session",
        plots.time_shares,
        "Mean seconds of a finished session by what it was doing or waiting for.",
    ),
    (
        "Completion times",
        plots.distributions,
        "Share of sessions done within a time, and within a multiple of their time alone.",
    ),
    (
        "Memory, admission and tools over time",
        plots.loads,
        (
            "KV in use counts blocks of running turns and blocks held for sessions whose tool "
            "runs; free blocks may still hold cached prefixes. Prefill repeated: computed "
            "tokens that had been computed before, as a share of the last 5 s."
        ),
    ),
)


class Drawn(NamedTuple):
    """A figure with its heading, the name of its file and its caption."""

    heading: str
    name: str
    figure: Figure
    caption: str


def write_report(
    folder: Path, runs: Sequence[PlottedRun], *, title: str, lead: str, command: Sequence[str]
) -> Path:
    """Write ``report.html``, ``report.md`` with its figures, and ``report.json``.

    Args:
        folder: where to.
        runs: the runs, the baseline first.
        title: heading.
        lead: one paragraph on workload and machine.
        command: the command that made it.

    Returns:
        The path of the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compared = [Run(run.label, run.result) for run in runs]
    verdicts = [speed_up_text(run, compared[0]) for run in compared[1:]]
    path = folder / "report.html"
    drawn = figures(runs)
    path.write_text(html_report(runs, title, lead, verdicts, command, drawn), encoding="utf-8")
    notes = "\n".join(f"- {run.label}: {quality_text(run.result.replay)}" for run in runs)
    text = [f"# {title}", lead, *verdicts, markdown(compared).rstrip(), notes]
    text += [f"Made by `{shlex.join(command)}`", *_pictures(folder, drawn)]
    (folder / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    summaries = {run.label: _summary(run.result) for run in runs}
    (folder / "report.json").write_text(json.dumps(summaries, indent=1) + "\n")
    return path


def figures(runs: Sequence[PlottedRun]) -> list[Drawn]:
    """All figures, drawn; none without event logs."""
    if not any(run.timeline for run in runs):
        return []
    return [
        Drawn(heading, draw.__name__.replace("_", "-"), draw(runs), caption)
        for heading, draw, caption in _FIGURES
    ]


def _pictures(folder: Path, drawn: Sequence[Drawn]) -> list[str]:
    """The figures as PNG files in ``folder``, and as Markdown."""
    parts: list[str] = []
    for each in drawn:
        plots.write_png(each.figure, folder / f"{each.name}.png")
        parts += [f"## {each.heading}", f"![{each.heading}]({each.name}.png)", each.caption]
    return parts


def html_report(
    runs: Sequence[PlottedRun],
    title: str,
    lead: str,
    verdicts: Sequence[str],
    command: Sequence[str],
    drawn: Sequence[Drawn],
) -> str:
    """The whole page."""
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(lead)}</p>',
        *(f'<p class="note">{_text(verdict)}</p>' for verdict in verdicts),
        _table(runs),
        *(_quality_note(run) for run in runs),
    ]
    for each in drawn:
        picture, caption = plots.svg(each.figure), _text(each.caption)
        parts.append(f"<h2>{_text(each.heading)}</h2>")
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    parts.append(_how(runs, command))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def quality_text(quality: ReplayQuality | None) -> str:
    """One line on whether the machine kept up."""
    if quality is None:
        return "virtual time"
    lag = "-" if quality.lag_p99_s is None else f"{quality.lag_p99_s * 1000:.0f} ms"
    late = quality.engine_late_share
    parts = [f"replay lag p99 {lag}"]
    if late is not None:
        parts.append(f"engine late by {late:.1%} of its busy time")
    if quality.tool_stretch is not None:
        parts.append(f"tools {quality.tool_stretch:.2f}x as long as recorded")
    if quality.cpu_usage_mean is not None:
        parts.append(f"host CPU {quality.cpu_usage_mean:.0%}")
    if quality.reasons:
        parts.append("; ".join(quality.reasons))
    return f"{quality.verdict}: {', '.join(parts)}"


def _table(runs: Sequence[PlottedRun]) -> str:
    heads = "".join(f"<th>{_text(run.label)}</th>" for run in runs)
    lines = [f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>"]
    for row in rows([Run(run.label, run.result) for run in runs]):
        cells = "".join(
            f'<td class="best">{_text(c)}</td>' if i in row.best else f"<td>{_text(c)}</td>"
            for i, c in enumerate(row.cells)
        )
        lines.append(f"<tr><td>{_text(row.label)}</td>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _quality_note(run: PlottedRun) -> str:
    quality = run.result.replay
    kind = quality.verdict if quality else "ok"
    text = f"{run.label}: {quality_text(quality)}"
    return f'<p class="note {_text(kind)}">{_text(text)}</p>'


def _how(runs: Sequence[PlottedRun], command: Sequence[str]) -> str:
    lines = ["<h2>How it was made</h2>", f"<pre>{_text(shlex.join(command))}</pre>"]
    for run in runs:
        serve = run.result.config.get("serve")
        if serve:
            lines.append(f"<pre># {_text(run.label)}\npython {_text(shlex.join(serve))}</pre>")
    made = runs[0].result.environment if runs else None
    if made:
        lines.append(f"<pre>{_text(json.dumps(made, indent=1))}</pre>")
    scenario = runs[0].result.config.get("scenario") if runs else None
    if scenario:
        lines.append(f"<pre>{_text(json.dumps(scenario, indent=1))}</pre>")
    lines.append(
        "<p>The accelerator is emulated: steps take the time a roofline model of the profile "
        "gives, KV blocks are counted by the engine itself, tokens are scripted. Times are "
        "not measurements of a GPU.</p>"
    )
    return "\n".join(lines)


def _summary(result: Result) -> dict[str, Any]:
    import msgspec

    return {
        "summary": msgspec.to_builtins(result.summary),
        "replay": msgspec.to_builtins(result.replay),
        "environment": result.environment,
    }


def _text(value: str) -> str:
    return html.escape(value)
