# SPDX-License-Identifier: Apache-2.0
"""The table of scheduling policies under equal admission caps, from an experiment's cells.

    mars experiment run scenarios/policies-h100.toml
    python scripts/policies_table.py [results/policies-h100] [--docs docs/policies.md --cap 8]

Writes ``table.md`` and ``table.json`` beside the cells: every load and cap, means over seeds, and
the ratio of mean completion times to ``fcfs`` under the same cap (paired bootstrap over seeds).
With ``--docs`` the tables of one cap also replace what stands there between two marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mars.bench.experiment_store import CellRecord, Store
from mars.bench.result import Summary
from mars.bench.stats import ratio_of_means

REFERENCE = "fcfs"
NO_CAP = 0
MARK = "<!-- {} of scripts/policies_table.py -->"

COLUMNS: dict[str, tuple[str, Callable[[Summary], float | None], str]] = {
    "sct_mean_s": ("completion, mean (s)", lambda s: s.sct_mean_s, ",.0f"),
    "sct_p50_s": ("P50", lambda s: s.sct_p50_s, ",.0f"),
    "sct_p95_s": ("P95", lambda s: s.sct_p95_s, ",.0f"),
    "ttft_p99_s": ("TTFT P99 (s)", lambda s: s.ttft_p99_s, ",.1f"),
    "computed_tokens": ("computed (k tokens)", lambda s: _thousands(s.computed_tokens), ",.0f"),
    "recomputed_tokens": ("recomputed (k)", lambda s: _thousands(s.recomputed_tokens), ",.0f"),
    "preemptions": ("preemptions", lambda s: s.preemptions, ",.0f"),
    "prefix_hit_rate": ("hit rate", lambda s: s.prefix_hit_rate, ".0%"),
}

Cells = dict[tuple[float, int], dict[str, list[CellRecord]]]
"""By load and cap: each policy's cells, by seed."""


def _thousands(tokens: float | None) -> float | None:
    return None if tokens is None else tokens / 1e3


def sorted_cells(records: Sequence[CellRecord]) -> Cells:
    """Cells by place; contenders of a place must have met the same sessions."""
    found: Cells = defaultdict(lambda: defaultdict(list))
    hashes: dict[tuple[float, int], str] = {}
    for record in sorted(records, key=lambda r: r.seed):
        expected = hashes.setdefault((record.rate_per_s, record.seed), record.sessions_hash)
        if record.sessions_hash != expected:
            raise SystemExit(f"{record.contender}, seed {record.seed}: other sessions than others")
        found[record.rate_per_s, record.cap or NO_CAP][record.contender].append(record)
    return found


def row(ran: Sequence[CellRecord], reference: Sequence[CellRecord]) -> dict[str, Any]:
    """One policy at one place: means over seeds, and how it compares with the reference."""
    errors = [f"seed {r.seed}: {r.error}" for r in ran if r.error]
    found: dict[str, Any] = {"seeds": [r.seed for r in ran], "errors": errors}
    for name, (_, read, _) in COLUMNS.items():
        values = [read(r.summary) for r in ran if r.summary is not None]
        known = [v for v in values if v is not None]
        found[name] = fmean(known) if known and len(known) == len(ran) else None
    pairs = [
        (a.summary.sct_mean_s, b.summary.sct_mean_s)
        for a, b in zip(ran, reference, strict=True)
        if a.summary is not None and b.summary is not None
    ]
    ours = [a for a, b in pairs if a is not None and b is not None]
    theirs = [b for a, b in pairs if a is not None and b is not None]
    if ours and len(ours) == len(ran):
        ratio = ratio_of_means(ours, theirs)
        found["times_better"] = [ratio.estimate, ratio.low, ratio.high]
    return found


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """One table: a line per policy, the best mean completion time first."""
    titles = [title for title, _, _ in COLUMNS.values()]
    lines = [
        "| policy | "
        + " | ".join([titles[0], f"times better than {REFERENCE}", *titles[1:]])
        + " |",
        "| --- |" + " ---: |" * (len(titles) + 1),
    ]
    for policy, one in sorted(rows.items(), key=lambda item: item[1]["sct_mean_s"] or 1e18):
        cells = [_cell(one[name], form) for name, (_, _, form) in COLUMNS.items()]
        cells.insert(1, _ratio(one.get("times_better")))
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "stuck" if value is None else format(value, form)


def _ratio(bounds: Sequence[float | None] | None) -> str:
    if bounds is None or bounds[0] is None:
        return ""
    estimate, low, high = bounds
    interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{estimate:.2f}{interval}"


def put_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a page."""
    page = path.read_text(encoding="utf-8")
    begin, end = MARK.format("begin"), MARK.format("end")
    if begin not in page or end not in page:
        raise SystemExit(f"{path}: lacks the marks {begin!r} and {end!r}")
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/policies-h100"))
    parser.add_argument("--docs", type=Path, help="page to put the tables of one cap into")
    parser.add_argument("--cap", type=int, default=8, help="which cap; 0: none")
    options = parser.parse_args()
    store = Store(options.folder)
    about = store.about()
    tree: dict[str, Any] = {"seeds": about.seeds, "reference": REFERENCE, "places": []}
    text: dict[int, list[str]] = defaultdict(list)
    for (rate, cap), by_policy in sorted(sorted_cells(store.read()).items()):
        rows = {name: row(ran, by_policy[REFERENCE]) for name, ran in by_policy.items()}
        tree["places"].append({"rate_per_s": rate, "cap": cap, "policies": rows})
        limit = "no cap" if cap == NO_CAP else f"cap {cap}"
        text[cap].append(f"**{rate:g} sessions/s, {limit}**\n\n{markdown(rows)}")
    whole = [part for cap in sorted(text) for part in text[cap]]
    (options.folder / "table.md").write_text("\n".join(whole), encoding="utf-8")
    (options.folder / "table.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    if options.docs:
        put_between_marks(options.docs, "\n".join(text[options.cap]))
    print(f"{options.folder}/table.md: {len(whole)} tables, {len(about.seeds)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
