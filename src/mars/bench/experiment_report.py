# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: one HTML file that needs nothing else, Markdown, and JSON."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mars.bench.experiment_knee import knee_point, strongest
from mars.bench.experiment_store import About, CellRecord
from mars.bench.experiment_table import (
    KNEE_SLOWDOWN,
    MEASURES,
    RATIOS,
    Entry,
    Point,
    knee_per_s,
    points,
)
from mars.bench.experiment_targets import Target, closed_share, targets
from mars.bench.stats import Interval

Table = tuple[str, list[str], list[list[str]]]
"""Caption, header, rows."""
Drawn = tuple[str, str, str, Any]
"""Name of the file, heading, caption, figure."""
NO_VALUE = "-"
METHOD = (
    "Everything is simulated: steps take the time a roofline model of the profile gives; the "
    "policies are those that run in vLLM and the gateway. Every contender of a point meets the "
    "same sessions, arrivals, machine, caps and cost curve, seed by seed. Values are means over "
    "seeds with 95% t intervals; ratios say by what factor a contender is better, with 95% "
    "bootstrap intervals (BCa) over paired seeds, which at five seeds or fewer are too narrow. "
    "A best cap is chosen after the fact, per point, by mean completion time on the seeds "
    "shown: no operator knows it, and the choice flatters whoever gets it."
)


def write_report(folder: Path, about: About, records: Iterable[CellRecord]) -> list[Point]:
    """Write ``report.md`` with its figures as PNG, ``report.json`` and ``report.html``.

    Needs matplotlib, of the bench extra.

    Returns:
        The points compared; empty when no seed is complete anywhere.

    Raises:
        UnequalError: contenders ran different sessions.
    """
    ran = list(records)
    found = points(about.experiment, ran, about.seeds, about.knees)
    if not found:
        return found
    held_to = targets(about.experiment, found)
    tables = list(all_tables(about, found, held_to))
    lead = _lead(about, ran)
    drawn = figures(about, found)
    for name, _, _, figure in drawn:
        figure.savefig(folder / f"{name}.png", dpi=110)
    (folder / "report.md").write_text(markdown(about, lead, tables, drawn), encoding="utf-8")
    (folder / "report.json").write_text(_compact(_tree(about, found, held_to)), encoding="utf-8")
    (folder / "report.html").write_text(page(about, lead, tables, drawn), encoding="utf-8")
    return found


def all_tables(about: About, found: Sequence[Point], held_to: Sequence[Target]) -> Iterable[Table]:
    """Every table, in order: verdicts first, then all measures of every point."""
    if held_to:
        yield target_table(about, held_to)
    yield bound_table(about, found)
    yield summary_table(about, found)
    yield from best_cap_tables(found)
    knees = knee_table(about, found)
    if knees[2]:
        yield knees
    for point in found:
        yield point_table(point)


def place(point: Point) -> str:
    """The point, in words."""
    low = " (low load)" if point.is_low else ""
    return f"{point.machine}, {point.rate_per_s:g} sessions/s{low}"


def target_table(about: About, held_to: Sequence[Target]) -> Table:
    """Each target, what was measured, and whether it is met."""
    rows = [[target.text, target.place, target.measured, target.verdict] for target in held_to]
    return f"Targets of {about.experiment.ours}", ["target", "where", "measured", ""], rows


def bound_table(about: About, found: Sequence[Point]) -> Table:
    """What no schedule can beat, beside what was reached."""
    experiment, rows = about.experiment, list[list[str]]()
    for point in found:
        base = strongest(point, experiment.baselines)
        best = None if base is None else base.mean("sct_mean_s")
        ours = None if experiment.ours is None else point.own(experiment.ours)
        reached = None if ours is None else ours.mean("sct_mean_s")
        bound, share = point.lower_bound_s, closed_share(point, experiment)
        told = [point.own(c.label) for c in experiment.contenders if c.knows_trace]
        known = [entry.mean("sct_mean_s") for entry in told if entry is not None]
        rows.append(
            [
                place(point),
                *(NO_VALUE if x is None else f"{x:.0f}" for x in (bound, best, reached)),
                NO_VALUE if base is None else base.label,
                *(
                    NO_VALUE if x is None or not bound else f"{x / bound:.2f}"
                    for x in (best, reached)
                ),
                NO_VALUE if share is None else f"{share:.0%}",
                *(NO_VALUE if x is None else f"{x:.0f}" for x in known),
            ]
        )
    name = experiment.ours or "ours"
    heads = ["", "bound (s)", "strongest (s)", f"{name} (s)", "strongest baseline"]
    heads += ["strongest / bound", f"{name} / bound", "gap closed"]
    heads += [f"{c.label} (s)" for c in experiment.contenders if c.knows_trace]
    return "Mean completion time, and the least that any schedule could reach", heads, rows


def summary_table(about: About, found: Sequence[Point]) -> Table:
    """Everyone under their own admission against the reference; the low load is a row, too."""
    reference = about.experiment.reference
    rows = [
        [place(point), entry.contender, *(_ratio(entry.to_reference.get(m)) for m in RATIOS)]
        for point in found
        for entry in point.entries
        if entry.cap is None and entry.contender != reference
    ]
    heads = ["", "contender", *(MEASURES[m].label for m in RATIOS)]
    return f"Factor by which each is better than {reference}", heads, rows


def best_cap_tables(found: Sequence[Point]) -> Iterable[Table]:
    """Everyone under their own admission against each baseline's best static cap."""
    capped = list(dict.fromkeys(e.contender for p in found for e in p.entries if e.is_best_cap))
    for baseline in capped:
        rows: list[list[str]] = []
        for point in found:
            best = point.best_cap(baseline)
            for entry in point.entries:
                ratios = entry.to_best_cap.get(baseline)
                if entry.cap is None and ratios and best is not None:
                    cells = [_ratio(ratios.get(m)) for m in RATIOS]
                    rows.append([place(point), str(best.cap), entry.contender, *cells])
        heads = ["", "best cap", "contender", *(MEASURES[m].label for m in RATIOS)]
        yield f"Factor by which each is better than {baseline} under its best cap", heads, rows


def knee_table(about: About, found: Sequence[Point]) -> Table:
    """At which load each contender's mean slowdown reaches 3."""
    rows: list[list[str]] = []
    for box in about.experiment.machines:
        here = [p for p in found if p.machine == box.label]
        if len(here) < 2:
            continue
        for contender in about.experiment.contenders:
            own = knee_per_s(here, contender.label, is_capped=False)
            best = knee_per_s(here, contender.label, is_capped=True)
            rows.append([box.label, contender.label, _rate(own), _rate(best)])
    heads = ["machine", "contender", "own admission (/s)", "best cap (/s)"]
    return f"Load at which the mean slowdown reaches {KNEE_SLOWDOWN:g}", heads, rows


def point_table(point: Point) -> Table:
    """All measures at one point, means over seeds with half the width of their interval."""
    rows: list[list[str]] = []
    for entry in point.shown:
        stuck = f" (stuck: {entry.errors[0]})" if entry.errors else ""
        rows.append([entry.label + stuck, *(_value(entry, name) for name in MEASURES)])
    seeds = ", ".join(map(str, point.seeds))
    heads = ["", *(m.label for m in MEASURES.values())]
    return f"{place(point)}: all measures (seeds {seeds})", heads, rows


def figures(about: About, found: Sequence[Point]) -> list[Drawn]:
    """All figures, each with its name, heading and caption."""
    from mars.bench import experiment_plots as draw

    ours = about.experiment.ours
    knees: dict[str, Point] = {}
    for box in about.experiment.machines:
        here = [p for p in found if p.machine == box.label]
        point = knee_point(here, about.experiment.baselines)
        if point is not None and about.experiment.finds_knee:
            knees[box.label] = point
    knees_per_s = {name: point.rate_per_s for name, point in knees.items()}
    drawn = [
        (d.name, d.heading, d.caption, draw.draw(d, found, knees_per_s, ours))
        for d in draw.DRAWINGS
    ]
    busiest = {p.machine: p for p in found}
    chosen = [p for p in found if p in knees.values() or p in busiest.values()]
    alphas = draw.ALPHAS
    return [
        *drawn,
        (alphas.name, alphas.heading, alphas.caption, draw.draw_alphas(chosen[:4], ours)),
    ]


def markdown(
    about: About, lead: Sequence[str], tables: Sequence[Table], drawn: Sequence[Drawn]
) -> str:
    """The report as Markdown; figures are files beside it."""
    made = f"`{shlex.join(about.command)}`"
    pictures = [
        f"## {heading}\n\n![{heading}]({name}.png)\n\n{caption} Made by {made}"
        for name, heading, caption, _ in drawn
    ]
    texts: list[str] = []
    for caption, heads, rows in tables:
        lines = [f"## {caption}", "", _row(heads), f"|{'---|' * len(heads)}"]
        lines += [_row(row) for row in rows]
        texts.append("\n".join(lines) + f"\n\nMade by {made}")
    first = _num_verdicts(about)
    parts = [f"# {about.experiment.title}", *lead, *texts[:first], *pictures, *texts[first:]]
    return "\n\n".join(parts) + "\n"


def _num_verdicts(about: About) -> int:
    """Tables that stand before the figures: targets, where there are any, and the bound."""
    return 1 if about.experiment.ours is None else 2


def page(about: About, lead: Sequence[str], tables: Sequence[Table], drawn: Sequence[Drawn]) -> str:
    """The report as one HTML page."""
    from mars.bench import plots, report

    made = f"<figcaption>Made by <code>{_text(shlex.join(about.command))}</code></figcaption>"
    parts = [f"<h1>{_text(about.experiment.title)}</h1>"]
    parts += [f'<p class="lead">{_text(text)}</p>' for text in lead]
    pictures: list[str] = []
    for _, heading, text, figure in drawn:
        caption = f"<figcaption>{_text(text)}</figcaption>{made}"
        pictures.append(f"<h2>{_text(heading)}</h2><figure>{plots.svg(figure)}{caption}</figure>")
    texts = [
        f"<h2>{_text(caption)}</h2>{_html_table(heads, rows)}{made}"
        for caption, heads, rows in tables
    ]
    first = _num_verdicts(about)
    parts += [*texts[:first], *pictures, *texts[first:]]
    tree = json.dumps(msgspec.to_builtins(about.experiment), indent=1)
    parts.append(f"<h2>The experiment</h2><pre>{_text(tree)}</pre>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{_text(about.experiment.title)}</title>\n"
        f"<style>{report.STYLE}\n.wide {{ overflow-x: auto; }} .wide th, .wide td "
        "{ padding: .2rem .5rem; font-size: 13px; }</style></head>\n"
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _lead(about: About, records: Sequence[CellRecord]) -> list[str]:
    done = sum(1 for r in records if r.seed in about.seeds)
    texts = [about.experiment.lead] if about.experiment.lead else []
    if done < about.num_cells:
        texts.append(
            f"Incomplete: {done} of {about.num_cells} cells are done. Only seeds that everyone "
            "at a point has finished are compared."
        )
    return [*texts, METHOD]


def _tree(about: About, found: Sequence[Point], held_to: Sequence[Target]) -> dict[str, Any]:
    return {
        "schema": "mars.experiment-report/1",
        "title": about.experiment.title,
        "command": about.command,
        "code": about.code,
        "reference": about.experiment.reference,
        "ours": about.experiment.ours,
        "targets": [
            {"target": t.text, "where": t.place, "measured": t.measured, "is_met": t.is_met}
            for t in held_to
        ],
        "points": [
            {
                "machine": p.machine,
                "rate_per_s": p.rate_per_s,
                "is_low_load": p.is_low,
                "seeds": p.seeds,
                "lower_bound_s": p.lower_bound_s,
                "gap_closed": closed_share(p, about.experiment),
                "entries": [_entry_tree(e) for e in p.entries],
            }
            for p in found
        ],
    }


def _compact(tree: dict[str, Any]) -> str:
    """JSON with one entry of a point a line, numbers to six digits."""
    tree = _short(tree)
    points = tree.pop("points")
    head = json.dumps(tree, indent=1)[:-2]
    blocks: list[str] = []
    for point in points:
        entries = point.pop("entries")
        lines = ",\n".join("   " + json.dumps(entry) for entry in entries)
        blocks.append(f'  {json.dumps(point)[:-1]}, "entries": [\n{lines}\n  ]}}')
    return f'{head},\n "points": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value


def _entry_tree(entry: Entry) -> dict[str, Any]:
    return {
        "contender": entry.contender,
        "cap": entry.cap,
        "is_best_cap": entry.is_best_cap,
        "errors": entry.errors,
        "values": entry.values,
        "means": {m: _bounds(entry.interval(m)) for m in MEASURES},
        "times_better_than_reference": _all_bounds(entry.to_reference),
        "times_better_than_best_cap_of": {
            name: _all_bounds(ratios) for name, ratios in entry.to_best_cap.items()
        },
    }


def _all_bounds(intervals: dict[str, Interval]) -> dict[str, Any]:
    return {name: _bounds(found) for name, found in intervals.items()}


def _bounds(found: Interval | None) -> Any:
    """Estimate, low and high."""
    return None if found is None else [found.estimate, found.low, found.high]


def _value(entry: Entry, name: str) -> str:
    found, form = entry.interval(name), MEASURES[name].form
    if found is None:
        return NO_VALUE
    text = format(found.estimate, form)
    if found.high is None or found.estimate == found.high:
        return text
    return f"{text} ±{format(found.high - found.estimate, form)}"


def _ratio(found: Interval | None) -> str:
    if found is None:
        return NO_VALUE
    if found.low is None or found.high is None:
        return f"{found.estimate:.2f}"
    return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _rate(per_s: float | None) -> str:
    return NO_VALUE if per_s is None else f"{per_s:.4f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _text(value: str) -> str:
    return html.escape(value)
