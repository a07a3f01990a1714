# SPDX-License-Identifier: Apache-2.0
"""SWE-agent runs on a self-hosted model, recorded by ThunderAgent: timings, and where kept, text.

Tool durations are measured; the class of a tool is known for runs whose trajectory was kept, else
it is "shell". The client's own time between tool and next request (packaging the observation,
about 0.33 s) is ``gap_s``. CPU seconds and memory are modelled (:mod:`mars.traces.toolcost`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct, field

from mars.traces.errors import TraceError
from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Count, Name, Seconds, TraceSession, TraceTool, TraceTurn
from mars.traces.toolcost import call_rng, fill_in

TOOL_NAMES = {
    "edit:view": "read",
    "edit:create": "edit",
    "edit:str_replace": "edit",
    "edit:insert": "edit",
    "bash:python": "python",
    "bash:test": "test",
    "bash:search/read": "search",
    "bash:git": "git",
    "bash:other": "shell",
    "bash:install": "install",
    "submit": "submit",
}
UNKNOWN_TOOL = "shell"
"""Name of a call whose class was not kept."""


class _Tool(Struct):
    dur_s: Seconds
    cls: str | None = None


class _Turn(Struct):
    num_input: Count | None = field(name="in")
    num_output: Count | None = field(name="out")
    gap_s: float | None
    tools: tuple[_Tool, ...] = ()


class _Run(Struct):
    session: Name
    turns: tuple[_Turn, ...]
    task: str | None = None
    model: str | None = None
    source: str | None = None


class _Step(Struct):
    response: str | None = None
    action: str | None = None


class _Text(Struct):
    session: Name
    steps: tuple[_Step, ...]


def read_thunderagent(
    path: str | Path, text_path: str | Path | None = None, *, seed: int = 0
) -> Iterator[TraceSession]:
    """Read runs as sessions, in file order; all arrive at 0.

    A last turn without token counts (the run was cut there) is dropped.

    Args:
        path: the timings, one run a line (``*.replay.jsonl``).
        text_path: replies and commands of some of the runs (``*.text.jsonl``).
        seed: of the modelled CPU seconds and memory.
    """
    texts: dict[str, tuple[_Step, ...]] = {}
    if text_path is not None:
        texts = {text.session: text.steps for _, text in read_rows(text_path, _Text)}
    for line, run in read_rows(path, _Run):
        session = TraceSession(
            session_id=run.session,
            turns=_turns(run, texts.get(run.session, ()), seed, path, line),
            model=run.model,
            task=run.task,
            source=run.source or "ThunderAgent",
        )
        yield checked(session, path, line)


def _turns(
    run: _Run, steps: Sequence[_Step], seed: int, path: str | Path, line: int
) -> tuple[TraceTurn, ...]:
    turns: list[TraceTurn] = []
    last = len(run.turns) - 1
    for index, turn in enumerate(run.turns):
        if not turn.num_input or not turn.num_output:
            if index == last:
                break
            raise TraceError(
                "the turn has no token counts. Drop the run, or cut it before this turn.",
                source=str(path),
                line=line,
                field=f"turns[{index}].in",
            )
        step = steps[index] if index < len(steps) else _Step()
        tools = _tools(run.session, index, turn.tools, step.action, seed)
        gap_s = run.turns[index + 1].gap_s if index < last else None
        rest_s = (gap_s or 0.0) - sum(tool.duration_s for tool in tools)
        turns.append(
            TraceTurn(
                prompt_tokens=turn.num_input,
                output_tokens=turn.num_output,
                text=step.response,
                tools=tools,
                gap_s=round(max(0.0, rest_s), 4),
            )
        )
    return tuple(turns)


def _tools(
    session_id: str, turn_index: int, tools: Sequence[_Tool], action: str | None, seed: int
) -> tuple[TraceTool, ...]:
    return tuple(
        fill_in(
            TOOL_NAMES.get(tool.cls or "", UNKNOWN_TOOL),
            tool.dur_s,
            call_rng(seed, session_id, turn_index, index),
            command=action if index == 0 else None,
        )
        for index, tool in enumerate(tools)
    )
