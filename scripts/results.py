# SPDX-License-Identifier: Apache-2.0
"""Make every report under results/: all experiments of scenarios/, as many at once as cores.

    python scripts/results.py                              # all
    python scripts/results.py low-load tool-tails          # these
    python scripts/results.py --seeds 1 --out results/local

The largest go first. Finished cells are kept: after Ctrl-C or a failure the same command goes
on where it stopped. What each run prints is in runs/results/NAME.log.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from mars.bench.experiment_plan import cells, load_experiment
from mars.bench.experiment_store import CELLS, Store, StoreError

SCENARIOS = Path("scenarios")
LOGS = Path("runs/results")
EVERY_S = 20.0
"""Between two lines of progress."""
POLICIES = "policies-h100"
"""Its cells also make the tables of docs/policies.md."""


class Report:
    """One experiment: what there is to do, and how far it is."""

    def __init__(self, path: Path, out: Path, num_seeds: int | None) -> None:
        experiment = load_experiment(path)
        planned = len(cells(experiment, num_seeds))
        self.name = path.stem
        self.folder = out / path.stem
        self.work = float(planned * experiment.workload.sessions)
        self.command = [str(Path(sys.executable).with_name("mars")), "experiment", "run"]
        self.command += [path.as_posix(), "--workers", "1"]
        self.command += [] if num_seeds is None else ["--seeds", str(num_seeds)]
        self.command += [] if out == Path("results") else ["--out", self.folder.as_posix()]
        self._num_planned = planned

    def progress(self) -> tuple[int, int]:
        """Cells that are done, and cells in all, those of the search for the knee included."""
        path = self.folder / CELLS
        num_done = path.read_bytes().count(b"\n") if path.exists() else 0
        try:
            return num_done, max(self._num_planned, Store(self.folder).about().num_cells)
        except StoreError:
            return num_done, self._num_planned

    def make(self) -> int:
        """Run what is missing and write the report; the exit status."""
        status = self._run(self.command, "w")
        is_default = self.folder.parent == Path("results")
        if not status and self.name == POLICIES and is_default:
            table = [sys.executable, "scripts/policies_table.py", "--docs", "docs/policies.md"]
            status = self._run([*table, "--cap", "8"], "a")
        return status

    @property
    def log(self) -> Path:
        """What its run prints."""
        return LOGS / f"{self.name}.log"

    def _run(self, command: Sequence[str], mode: str) -> int:
        with self.log.open(mode) as log:
            return subprocess.run(command, stdout=log, stderr=log, check=False).returncode


def show(runs: dict[Future[int], Report], began: float) -> None:
    """One line: who is where, and how much of all is done."""
    parts: list[str] = []
    done = sum(report.work for future, report in runs.items() if future.done())
    for future, report in runs.items():
        if future.running():
            num_done, num_cells = report.progress()
            done += report.work * min(1.0, num_done / num_cells)
            parts.append(f"{report.name} {num_done}/{num_cells}")
    share, took_s = done / sum(r.work for r in runs.values()), time.monotonic() - began
    num_over = sum(future.done() for future in runs)
    print(
        f"{took_s / 60:5.1f} min  {share:4.0%}  {num_over} of {len(runs)} reports; "
        f"now {', '.join(parts) or '-'}",
        flush=True,
    )


def make_all(reports: Sequence[Report], at_once: int) -> int:
    """Make them, the largest first; how many failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as threads:
        runs = {threads.submit(report.make): report for report in reports}
        try:
            left = set(runs)
            while left:
                show(runs, began)
                ended, left = wait(left, timeout=EVERY_S, return_when="FIRST_COMPLETED")
                for future in ended:
                    report = runs[future]
                    how = f"failed: see {report.log}" if future.result() else "done"
                    print(f"           {report.folder}: {how}", flush=True)
        except KeyboardInterrupt:
            threads.shutdown(cancel_futures=True)  # Ctrl-C reached their processes, too
            raise
    show(runs, began)
    return sum(future.result() != 0 for future in runs)


def chosen(names: Sequence[str]) -> list[Path]:
    """Files of these experiments, of all without a name.

    Raises:
        SystemExit: no such experiment.
    """
    known = {
        path.stem: path
        for path in sorted(SCENARIOS.glob("*.toml"))
        if "contenders" in tomllib.loads(path.read_text(encoding="utf-8"))
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no experiment {unknown[0]!r} in {SCENARIOS}/; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="experiments; default: all")
    parser.add_argument("--seeds", type=int, help="in place of the files' number")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="default: cores")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default: results")
    options = parser.parse_args()
    reports = [Report(path, options.out, options.seeds) for path in chosen(options.names)]
    reports.sort(key=lambda report: -report.work)
    try:
        num_failed = make_all(reports, options.at_once)
    except KeyboardInterrupt:
        print("Stopped; what is done is kept. The same command goes on from here.")
        return 130
    return min(1, num_failed)


if __name__ == "__main__":
    sys.exit(main())
