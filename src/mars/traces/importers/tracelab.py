# SPDX-License-Identifier: Apache-2.0
"""TraceLab rows: one LLM round of a coding agent per line, with the timing of each tool call.

A round whose prompt is not shorter than the last one goes on from it; a shorter one (compaction)
keeps what its provider counted as cached prefix. The first round's cached prefix is common to all
sessions of one project and provider. Overlapping tool calls follow one another here, each with the
time it added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Count, Name, Positive, Seconds, TraceSession, TraceTool, TraceTurn
from mars.traces.toolcost import call_rng, fill_in

TOOL_CLASSES = {
    "Read": "read",
    "Write": "edit",
    "Edit": "edit",
    "Grep": "search",
    "Glob": "search",
    "Task": "subagent",
    "Agent": "subagent",
}


class _Event(Struct):
    event_type: str
    timestamp: datetime


class _Tool(Struct):
    tool_name: Name
    emitted_at: datetime | None = None
    result_at: datetime | None = None
    tool_wall_latency_ms: Seconds | None = None
    tool_internal_latency_ms: Seconds | None = None


class _Round(Struct):
    session_id: Name
    round_index: Count
    input_tokens_total: Positive
    prefix_tokens: Count
    output_tokens: Count
    provider: str = ""
    project: str = ""
    model: str | None = None
    timing_events: tuple[_Event, ...] = ()
    tools: tuple[_Tool, ...] = ()


def read_tracelab(path: str | Path, *, seed: int = 0) -> Iterator[TraceSession]:
    """Read rounds and yield one session per (project, session id), by first appearance.

    Arrivals count from the earliest event of the file.

    Args:
        path: the rows; rounds of a session may stand anywhere in the file.
        seed: of the modelled CPU seconds and memory.
    """
    rounds: dict[tuple[str, str], list[tuple[int, _Round]]] = defaultdict(list)
    for line, row in read_rows(path, _Round):
        rounds[row.project, row.session_id].append((line, row))
    starts = [_start(row) for group in rounds.values() for _, row in group]
    first = min((start for start in starts if start is not None), default=None)
    for (project, session_id), group in rounds.items():
        ordered = [row for _, row in sorted(group, key=lambda pair: pair[1].round_index)]
        start = _start(ordered[0])
        arrival_s = (start - first).total_seconds() if start and first else 0.0
        is_unique = sum(other == session_id for _, other in rounds) == 1
        session = TraceSession(
            session_id=session_id if is_unique else f"{project}/{session_id}",
            arrival_s=arrival_s,
            turns=_turns(session_id, ordered, seed),
            model=ordered[0].model,
            source="TraceLab",
        )
        yield checked(session, path, group[0][0])


def _start(row: _Round) -> datetime | None:
    return min((event.timestamp for event in row.timing_events), default=None)


def _end(row: _Round) -> datetime | None:
    times = [event.timestamp for event in row.timing_events]
    times += [tool.result_at for tool in row.tools if tool.result_at is not None]
    return max(times, default=None)


def _turns(session_id: str, rows: Sequence[_Round], seed: int) -> tuple[TraceTurn, ...]:
    turns: list[TraceTurn] = []
    for index, row in enumerate(rows):
        before = rows[index - 1] if index else None
        shrinks = before is not None and row.input_tokens_total < before.input_tokens_total
        shared = min(row.prefix_tokens, row.input_tokens_total)
        turns.append(
            TraceTurn(
                prompt_tokens=row.input_tokens_total,
                output_tokens=max(1, row.output_tokens),
                reused_tokens=shared if shrinks else None,
                shared_prefix=(
                    (f"tracelab:{row.project}:{row.provider}", shared) if before is None else None
                ),
                tools=_tools(session_id, index, row.tools, seed),
                gap_s=_gap_s(row, rows[index + 1]) if index + 1 < len(rows) else 0.0,
            )
        )
    return tuple(turns)


def _gap_s(row: _Round, following: _Round) -> float:
    end, start = _end(row), _start(following)
    return max(0.0, (start - end).total_seconds()) if start and end else 0.0


def _tools(
    session_id: str, turn_index: int, tools: Sequence[_Tool], seed: int
) -> tuple[TraceTool, ...]:
    calls: list[TraceTool] = []
    busy_until: datetime | None = None
    for index, tool in enumerate(tools):
        duration_s = (tool.tool_wall_latency_ms or tool.tool_internal_latency_ms or 0.0) / 1000.0
        if tool.emitted_at is not None and tool.result_at is not None:
            start = max(tool.emitted_at, busy_until or tool.emitted_at)
            duration_s = max(0.0, (tool.result_at - start).total_seconds())
            busy_until = max(tool.result_at, busy_until or tool.result_at)
        name = TOOL_CLASSES.get(tool.tool_name, tool.tool_name)
        rng = call_rng(seed, session_id, turn_index, index)
        calls.append(fill_in(name, duration_s, rng))
    return tuple(calls)
