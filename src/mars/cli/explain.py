# SPDX-License-Identifier: Apache-2.0
"""`mars explain`: where a session's time went, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from mars.cli.errors import CliError
from mars.telemetry.explain import Explanation, RunLog, SessionLine, explain, list_sessions
from mars.telemetry.explain.account import Cause
from mars.telemetry.explain.report import TurnLine
from mars.telemetry.explain.words import after, count, seconds, share
from mars.telemetry.sink import LogError, read_events

app = App(
    name="explain",
    help_epilogue="""**Examples**

```sh
mars explain --events results/demo/fcfs/events.jsonl        # all sessions, the longest first
mars explain django__django-14155@bs4 --events results/demo/fcfs
mars sim public:swe-agent --events run/events.jsonl && mars explain --events run/events.jsonl
```
""",
)

COLUMNS = {
    "held": (Cause.HELD,),
    "queue": (Cause.QUEUE, Cause.PREEMPTED),
    "prefill": (Cause.PREFILL,),
    "again": (Cause.RECOMPUTE,),
    "decode": (Cause.DECODE,),
    "tool queue": (Cause.TOOL_QUEUE,),
    "tool": (Cause.TOOL,),
    "client": (Cause.GAP,),
}
"""Columns of the turn table and the causes in each."""


NOTHING_S = 0.0005
"""Less than this is not shown in the turn table."""


@app.default
def explain_session(
    session: str | None = None,
    /,
    *,
    events: Path,
    generation: int | None = None,
    top: int = 8,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Tell from a run's event log where a session's time went, and why.

    Without SESSION: list the sessions, the longest first, with what took most of their time.

    Parameters
    ----------
    session
        Id of the session.
    events
        Event log of the run (`events.jsonl`), or the folder it is in.
    generation
        Which life of an id that was used more than once; default: the last.
    top
        How many moments and decisions (or sessions) to show; 0 shows all.
    json
        Print everything as JSON (`mars.explain/1`).
    """
    log = _read(events)
    shown = top if top > 0 else sys.maxsize
    if session is None:
        lines = list_sessions(log)
        if json:
            _print_json({"schema": "mars.explain/1", "sessions": lines})
        else:
            _print_sessions(lines, shown)
        return
    explanation = explain(log, session, generation)
    if json:
        _print_json(explanation)
    else:
        _print_explanation(explanation, shown)


def _read(path: Path) -> RunLog:
    file = path / "events.jsonl" if path.is_dir() else path
    try:
        return RunLog(read_events(file))
    except LogError as error:
        raise CliError(
            f"not an event log: {error}",
            "name the events.jsonl of a run of mars serve, mars bench or mars sim --events",
        ) from error


def _print_json(content: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content)).decode() + "\n")


def _print_sessions(lines: list[SessionLine], shown: int) -> None:
    if not lines:
        raise CliError("the log has no sessions", "was anything served while it was written?")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("session", overflow="fold")
    table.add_column("took", justify="right")
    table.add_column("most of it")
    for title in ("turns", "recomputed", "preempted"):
        table.add_column(title, justify="right")
    for line in lines[:shown]:
        table.add_row(
            line.session_id + (f" (life {line.generation})" if line.generation else ""),
            seconds(line.completion_s) + ("" if line.is_complete else " so far"),
            f"{line.dominant_cause} ({share(line.dominant_share, 1.0)})",
            f"{line.num_turns}",
            f"{line.num_recomputed_tokens:,}",
            f"{line.num_preemptions}",
        )
    console = Console()
    console.print(table)
    _print_rest(console, len(lines) - shown, "session")


def _print_explanation(explanation: Explanation, shown: int) -> None:
    console = Console(highlight=False, markup=False)
    console.print(explanation.headline, style="bold")
    for note in explanation.notes:
        console.print(note, style="dim")
    if explanation.turns:
        console.print()
        console.print(_turn_table(explanation.turns))
    console.print("\nWhat took longest", style="bold")
    for moment in explanation.moments[:shown]:
        turn = "" if moment.turn_index is None else f" (turn {moment.turn_index})"
        console.print(
            f"{seconds(moment.duration_s):>11} at {after(moment.at_s)}, "
            f"{moment.cause}{turn}: {moment.text}",
            soft_wrap=True,
        )
    _print_rest(console, len(explanation.moments) - shown, "moment")
    if not explanation.decisions:
        return
    console.print("\nWhat the engine decided", style="bold")
    for line in explanation.decision_counts:
        console.print(f"  {line}", soft_wrap=True)
    told = [d for d in explanation.decisions if not d.is_routine or shown == sys.maxsize]
    for decision in told[:shown]:
        console.print(
            f"{after(decision.at_s):>11} {decision.kind}: {decision.text}", soft_wrap=True
        )
    _print_rest(console, len(explanation.decisions) - len(told[:shown]), "decision")


def _turn_table(turns: list[TurnLine]) -> Table:
    present = {
        title: causes
        for title, causes in COLUMNS.items()
        if any(turn.seconds.get(cause, 0.0) > NOTHING_S for turn in turns for cause in causes)
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("turn", "at", "took", *present, "prompt", "cached", "recomp.", "output"):
        table.add_column(title, justify="right")
    for turn in turns:
        cells = (sum(turn.seconds.get(cause, 0.0) for cause in c) for c in present.values())
        table.add_row(
            f"{turn.turn_index}",
            after(turn.at_s),
            seconds(turn.total_s),
            *(seconds(cell) if cell > NOTHING_S else "" for cell in cells),
            f"{turn.num_prompt_tokens:,}",
            f"{turn.num_cached_tokens:,}",
            f"{turn.num_recomputed_tokens:,}",
            f"{turn.num_output_tokens:,}",
        )
    return table


def _print_rest(console: Console, num_left: int, noun: str) -> None:
    if num_left > 0:
        console.print(f"... and {count(num_left, 'more ' + noun)}: --top 0 shows all", style="dim")
