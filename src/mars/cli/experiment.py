# SPDX-License-Identifier: Apache-2.0
"""`mars experiment`: policies over loads, machines, caps and seeds, in virtual time."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mars.bench.experiment import cell_key, code_fingerprint, run_cells
from mars.bench.experiment_knee import further_loads
from mars.bench.experiment_plan import Cell, Experiment, cells, check_machines, load_experiment
from mars.bench.experiment_report import write_report
from mars.bench.experiment_store import About, CellRecord, Store, still_wanted
from mars.bench.experiment_table import Point, points
from mars.cli.errors import CliError

INTERRUPTED = 130
BRIEF = {
    "sct_mean_s": "mean",
    "sct_p95_s": "P95",
    "slowdown_mean": "slowdown",
    "goodput_3": "good@3",
    "sessions_per_h": "rate",
    "ttft_p99_s": "TTFT",
}
"""Measures of the table on the terminal, under names that leave room for contenders."""

app = App(
    name="experiment",
    help="Compare policies over loads, machines, caps and seeds, in virtual time.",
    help_epilogue="""**Examples**

```sh
mars experiment run scenarios/load-sweep-h100.toml
mars experiment run scenarios/low-load.toml --seeds 2 --workers 1 --out results/local/low
mars experiment report results/load-sweep-h100
```

Ctrl-C keeps what is done; the same command goes on from there.
""",
)


@app.command
def run(
    scenario: Path,
    /,
    *,
    seeds: int | None = None,
    workers: int | None = None,
    out: Path | None = None,
    keep_sessions: bool = False,
) -> None:
    """Run an experiment file, or what is missing of it, and write its report.

    Parameters
    ----------
    scenario
        The experiment, usually under `scenarios/`.
    seeds
        How many, in place of the file's number. More later only adds what is missing.
    workers
        Processes; default: one per core.
    out
        Folder for cells and report; default: `results/` and the file's name.
    keep_sessions
        Also keep every run whole (`mars.result/1`), in `runs/` of the folder. Cells that
        are already done are not repeated for it.
    """
    for flag, value in {"--seeds": seeds, "--workers": workers}.items():
        if value is not None and value < 1:
            raise CliError(f"{flag} is {value}", "give at least 1")
    experiment = load_experiment(scenario)
    check_machines(experiment)
    store = Store(out or Path("results") / scenario.stem)
    wish = Wish(experiment, seeds, workers, command(scenario, seeds, out))
    keep_in = store.folder / "runs" if keep_sessions else None
    with store.locked():
        _run_all(store, wish, keep_in)
        _report(store)


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    experiment: Experiment
    num_seeds: int | None
    num_workers: int | None
    command: list[str]


def _run_all(store: Store, wish: Wish, keep_in: Path | None) -> None:
    """Run the file's loads, then those that the search for the knee asks for."""
    console = Console(stderr=True)
    experiment, seed_list = wish.experiment, list(wish.experiment.seeds_run(wish.num_seeds))
    knees: dict[str, list[float]] = {}
    while True:
        planned = cells(experiment, wish.num_seeds, knees)
        plan = [(cell_key(experiment, cell), cell) for cell in planned]
        keys = [key for key, _ in plan]
        loads = {cell.rate_per_s for cell in planned} if experiment.finds_knee else None
        done = still_wanted(store.read(), keys, seed_list, loads)
        store.rewrite(done.values(), keys)
        about = About(
            experiment=experiment,
            seeds=seed_list,
            command=wish.command,
            num_cells=len(plan),
            code=code_fingerprint(),
            knees=knees,
        )
        store.begin(about)
        missing = [(key, cell) for key, cell in plan if key not in done]
        _say_start(console, experiment, len(plan), len(missing))
        num_workers = min(wish.num_workers or os.cpu_count() or 1, max(1, len(missing)))
        ran = run_cells(experiment, missing, num_workers=num_workers, keep_in=keep_in)
        try:
            _run(ran, missing, store, console)
        except KeyboardInterrupt:
            store.rewrite(store.read(), keys)
            console.print("Stopped; what is done is kept. The same command goes on from here.")
            sys.exit(INTERRUPTED)
        of_plan = [record for record in store.read() if record.key in set(keys)]
        further = further_loads(experiment, points(experiment, of_plan, seed_list, knees), knees)
        if further is None:
            break
        knees = further
        console.print(f"Looking for the knee at {_loads(knees)}", highlight=False)
    store.rewrite(still_wanted(store.read(), keys, seed_list).values(), keys)


def _loads(knees: dict[str, list[float]]) -> str:
    return ", ".join(f"{rates[-1]:g}/s on {name}" for name, rates in knees.items() if rates)


@app.command
def report(folder: Path, /) -> None:
    """Write the report of what an experiment's folder holds, complete or not.

    Parameters
    ----------
    folder
        What `mars experiment run` wrote to.
    """
    _report(Store(folder))


def command(scenario: Path, seeds: int | None, out: Path | None) -> list[str]:
    """What makes the same results again; the number of workers does not change them."""
    words = ["mars", "experiment", "run", scenario.as_posix()]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    return words + ([] if out is None else ["--out", out.as_posix()])


def _say_start(console: Console, experiment: Experiment, num_cells: int, num_missing: int) -> None:
    done = num_cells - num_missing
    known = f", {done} of them done" if done else ""
    console.print(f"{experiment.title}: {num_cells} cells{known}", highlight=False)


def _run(
    ran: Iterator[CellRecord],
    missing: Sequence[tuple[str, Cell]],
    store: Store,
    console: Console,
) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    cells_by_key = dict(missing)
    with closing(ran), Progress(*columns, console=console) as progress:  # type: ignore[type-var]
        task = progress.add_task("", total=len(missing))
        for record in ran:
            store.append(record)
            progress.advance(task)
            if record.error is not None:
                stuck = f"stuck: {cells_by_key[record.key]}: {record.error}"
                progress.console.print(stuck, highlight=False, markup=False)


def _report(store: Store) -> None:
    about = store.about()
    found = write_report(store.folder, about, store.read())
    if not found:
        raise CliError(
            f"{store.folder}: no point has a seed that everyone has finished",
            f"go on with `{shlex.join(about.command)}`",
        )
    console = Console()
    console.print(_brief(about, found))
    console.print(f"Report: {store.folder / 'report.html'}", highlight=False)


def _brief(about: About, found: Sequence[Point]) -> Table:
    """Ratios to the reference without their intervals, `*` where those exclude 1."""
    table = Table(
        title=f"Times better than {about.experiment.reference} (* interval excludes 1)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for head in ("seconds", *BRIEF.values()):
        table.add_column(head, justify="right", no_wrap=True)
    for point in found:
        table.add_row(f"{point.rate_per_s:g}/s, {point.machine}", style="bold")
        for entry in point.shown:
            mean_s = entry.mean("sct_mean_s")
            ratios = [entry.to_reference.get(m) for m in BRIEF]
            cells = [
                "-" if r is None else f"{r.estimate:.2f}{'* '[not r.is_decided]}" for r in ratios
            ]
            table.add_row(entry.label, "-" if mean_s is None else f"{mean_s:.0f}", *cells)
    return table
