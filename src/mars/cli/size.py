# SPDX-License-Identifier: Apache-2.0
"""`mars size`: how many sessions a machine carries, and what more of it would bring."""

from __future__ import annotations

import json as json_text
import os
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mars.bench.size import (
    Answer,
    Box,
    Load,
    ServiceLevel,
    Trial,
    base_box,
    find,
    first_guess_per_s,
    measuring,
    variants,
)
from mars.bench.size_report import HEADS, draw, notes, rows, tree
from mars.cli.errors import CliError
from mars.sim.run import SimConfig

app = App(
    name="size",
    help_epilogue="""**Examples**

```sh
mars size --trace public:swe-agent --slo goodput@3=0.95
mars size --trace team.jsonl.xz --slo goodput@2=0.9 --machine h200-gpt-oss-120b --cpus 16 \\
    --gpus 2 --json size.json --plot size.png
mars size --trace public:claude-code --slo goodput@3=0.9 --max-gap-s 30 --policy fcfs \\
    --admission none --tool-policy fifo
```

The last one answers for plain vLLM. Everything is simulated; docs/size.md says what that means.
""",
)


@app.default
def size(
    *,
    trace: str,
    slo: str = "goodput@3=0.95",
    machine: str = "h100-qwen3-coder-30b",
    gpus: int = 1,
    cpus: int = 8,
    kv_tokens: int | None = None,
    more_cores: int = 1,
    more_gigabytes: float = 1.0,
    policy: str = "mars",
    admission: str = "mars",
    tool_policy: str = "shortest",
    sessions: int = 80,
    max_turns: int | None = None,
    max_gap_s: float | None = None,
    arrivals: str = "poisson",
    seeds: int = 5,
    workers: int | None = None,
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Find the load that a machine carries within a service level, and what more of it brings.

    Parameters
    ----------
    trace
        What the sessions are like: a `mars.trace/1` file, or `public:NAME`.
    slo
        `goodput@ALPHA=SHARE`: this share of the sessions ends within ALPHA times its time alone.
    machine
        Cost profile, by name or file: a GPU and a model.
    gpus
        GPUs, each with a replica of the model; sessions and cores are divided among them.
    cpus
        Cores that tools may use, of the whole machine.
    kv_tokens
        KV pool of one GPU; default: what its memory holds.
    more_cores
        How many cores "more cores" means.
    more_gigabytes
        How much memory for KV, on every GPU, "more KV" means.
    policy
        Scheduling policy inside the engine.
    admission
        Admission policy in front of it.
    tool_policy
        Order of the tool queue.
    sessions
        How many sessions a run has; many more than are there at once.
    max_turns
        Cut longer sessions after so many turns.
    max_gap_s
        Cut longer pauses of the client.
    arrivals
        `poisson`, `gamma:CV`, `burst:SIZE`, `even`.
    seeds
        Draws of sessions and arrivals; all machines meet the same.
    workers
        Processes; default: one per core.
    json
        Write answer and all trials (`mars.size/1`) to this file.
    plot
        Write a figure to this file (.png, .svg); needs the `bench` extra.
    """
    _check(gpus, cpus, more_cores, more_gigabytes, sessions, seeds)
    level = ServiceLevel.parse(slo)
    config = SimConfig(
        policy=policy,
        admission=admission,
        tool_policy=tool_policy,
        machine=machine,
        num_cpus=cpus,
        kv_tokens=kv_tokens,
    )
    base, bytes_per_token = base_box(config, gpus)
    boxes = variants(base, bytes_per_token, core_step=more_cores, gigabytes=more_gigabytes)
    load = Load(
        trace=trace,
        num_sessions=sessions,
        arrivals=arrivals,
        max_turns=max_turns,
        max_gap_s=max_gap_s,
    )
    seed_list = list(range(1, seeds + 1))
    num_workers = min(workers or os.cpu_count() or 1, seeds)
    answers = _answers(boxes, level, load, seed_list, num_workers)
    if json is not None:
        text = json_text.dumps(tree(answers, level, load, seed_list), indent=1) + "\n"
        json.write_text(text, encoding="utf-8")
    if plot is not None:
        draw(answers, level).savefig(plot, dpi=110)
    _print(answers, level, load)


def _check(
    gpus: int, cpus: int, more_cores: int, more_gigabytes: float, sessions: int, seeds: int
) -> None:
    counts = {"--gpus": gpus, "--cpus": cpus, "--more-cores": more_cores}
    for flag, value in (counts | {"--sessions": sessions, "--seeds": seeds}).items():
        if value < 1:
            raise CliError(f"{flag} is {value}", "give at least 1")
    if not more_gigabytes > 0:
        raise CliError(f"--more-gigabytes is {more_gigabytes}", "give more than 0")


def _answers(
    boxes: Sequence[Box],
    level: ServiceLevel,
    load: Load,
    seeds: Sequence[int],
    num_workers: int,
) -> list[Answer]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    answers: list[Answer] = []
    with (
        measuring(load, level.alpha, seeds, num_workers) as measure_at,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("drawing sessions", total=None)
        guess_per_s = first_guess_per_s(load, boxes[0], seeds[0])

        def tried(box: Box, trial: Trial) -> None:
            place = f"{len(answers) + 1} of {len(boxes)}, {box.label}"
            progress.update(
                task,
                description=f"{place}: {trial.share:.0%} at {trial.sessions_per_h:.0f} sessions/h",
            )

        for box in boxes:
            answer = find(box, level, guess_per_s, measure_at, tried)
            answers.append(answer)
            if answer.sessions_per_h is not None:
                guess_per_s = answer.sessions_per_h / box.num_gpus / 3600.0
    return answers


def _print(answers: Sequence[Answer], level: ServiceLevel, load: Load) -> None:
    table = Table(title=str(level), title_justify="left", box=None, pad_edge=False)
    table.add_column(HEADS[0])
    for head in HEADS[1:]:
        table.add_column(head, justify="right")
    for row in rows(answers):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in notes(answers, load):
        console.print(f"Note: {note}", highlight=False)
