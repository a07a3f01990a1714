# SPDX-License-Identifier: Apache-2.0
"""The fault table: what was injected, what clients saw, what was lost.

Run: ``python benchmarks/faults.py [--only TEXT ...] [--vllm] [--json FILE]``. Real processes
and sockets; a fault at a time, some minutes in all. Prints Markdown. ``--vllm`` adds vLLM
itself on the emulated accelerator (two starts of about 40 s).

The largest fault opens 10,000 connections: it needs ``ulimit -n`` of 12,000 or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from mars.testing import faults_clients, faults_control, faults_engine
from mars.testing.faults import Outcome

Fault = Callable[[Path], Coroutine[Any, Any, Outcome]]
FILES_NEEDED = 12_000

FAULTS: dict[str, Fault] = {
    "engine-killed-in-turns": faults_engine.engine_killed_in_turns,
    "engine-killed-between-turns": faults_engine.engine_killed_between_turns,
    "engine-stalls": faults_engine.engine_stopped,
    "rank-killed": faults_engine.ranks,
    "gateway-killed": faults_control.gateway_killed,
    "gateway-stalls": faults_engine.gateway_stopped_in_a_burst,
    "gateway-stalls-long": partial(faults_engine.gateway_stopped_in_a_burst, num_events=300_000),
    "clock": faults_control.clock_jumps,
    "disk-full": faults_control.full_disk,
    "log-rotated": faults_control.log_rotated,
    "held-10000": partial(faults_clients.held_sessions, num_sessions=10_000),
    "slow-streams": faults_clients.slow_model_readers,
    "slow-events": faults_clients.slow_event_reader,
    "nonsense": faults_clients.nonsense,
    "half-open": faults_clients.half_open,
}


def vllm_fault() -> dict[str, Fault]:
    """The one that needs vLLM in the environment."""
    from mars.testing import faults_vllm

    return {"vllm-killed": faults_vllm.vllm_killed}


def words(counts: dict[str, Any]) -> str:
    """Counts as ``name 1, other 2``."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items())


def table(outcomes: list[Outcome]) -> str:
    """Markdown."""
    lines = ["| injected | clients saw | lost | noted |", "| --- | --- | --- | --- |"]
    for out in outcomes:
        saw = ", ".join(f"{count:,} x {what}" for what, count in out.clients_saw.items()) or "-"
        lost = {name: count for name, count in out.lost.items() if count}
        told = out.noted.get("told_lost", 0)
        what = f"{told:,} events, and says so" if told else "nothing"
        what = f"**{words(lost)}**" if lost else what
        lines.append(f"| {out.fault} | {saw} | {what} | {words(out.noted) or '-'} |")
    checked = sorted({name.replace("_", " ") for out in outcomes for name in out.lost})
    lines += ["", f"Counted as lost, and zero where it says nothing: {', '.join(checked)}."]
    return "\n".join(lines)


def main() -> None:
    """Inject, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="faults whose name contains one of these")
    parser.add_argument("--vllm", action="store_true", help="vLLM itself, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, FILES_NEEDED) if hard != resource.RLIM_INFINITY else FILES_NEEDED
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    faults = FAULTS | (vllm_fault() if options.vllm else {})
    outcomes: list[Outcome] = []
    for name, inject in faults.items():
        if options.only and not any(part in name for part in options.only):
            continue
        started = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="mars-") as folder:
            try:
                outcomes.append(asyncio.run(inject(Path(folder))))
            except TimeoutError:
                outcomes.append(Outcome(name, lost={"not_finished_in_time": 1}))
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(outcomes))
    if options.json:
        rows = [
            {
                "fault": out.fault,
                "clients_saw": dict(out.clients_saw),
                "lost": out.lost,
                "noted": out.noted,
            }
            for out in outcomes
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if not all(out.is_nothing_lost for out in outcomes):
        sys.exit("something was lost")


if __name__ == "__main__":
    main()
