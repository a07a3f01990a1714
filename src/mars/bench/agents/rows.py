# SPDX-License-Identifier: Apache-2.0
"""What the runs of one agent say, as one row of the compatibility table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mars.bench.agents.clients import Client
from mars.bench.agents.tap import TappedRequest
from mars.bench.agents.tasks import NUM_CALLS, PAUSE_S, POEM, mark
from mars.core import events as ev
from mars.gateway.identity import identify, peek

NONE = "-"


class Run(msgspec.Struct, kw_only=True):
    """One agent on one task."""

    exit_code: int | None
    """None: it was stopped at the time limit."""
    last_words: str
    duration_s: float


class Row(msgspec.Struct, kw_only=True):
    """What is known of one agent; a field is empty where it was not tried."""

    name: str
    title: str
    version: str
    api: str
    session: str = ""
    side_calls: str = ""
    hold: str = ""
    tools: str = ""
    stream: str = ""
    restart_in_tool: str = ""
    restart_in_reply: str = ""


COLUMNS = {
    "title": "agent",
    "version": "version",
    "api": "API",
    "session": "session recognised by",
    "side_calls": "side calls attributed",
    "hold": "held start survived",
    "tools": "tool phases seen",
    "stream": "stream intact",
    "restart_in_tool": "engine killed during a tool",
    "restart_in_reply": "engine killed during a reply",
}


def fill_main(
    row: Row,
    client: Client,
    run: Run,
    work: Path,
    requests: Sequence[TappedRequest],
    events: Sequence[ev.Event],
) -> None:
    """Everything that the undisturbed (but held) run tells."""
    own = [r for r in requests if mark(client, "main").encode() in r.body]
    if not own:
        row.session = f"no request came: {run.last_words}"
        return
    sessions = Counter(map(_session, own))
    session_id = sessions.most_common(1)[0][0]
    aside = [r for r in own if _is_aside(client, r, own[0])]
    aside += [r for r in requests if r not in own and _session(r) == session_id]
    work_calls = [r for r in own if r not in aside]
    is_one = set(map(_session, work_calls)) == {session_id}
    row.session = _source(client, own[0], session_id) if is_one else f"no: {len(sessions)} sessions"
    num_right = sum(_session(r) == session_id for r in aside)
    row.side_calls = f"{num_right} of {len(aside)}" if aside else "none sent"
    is_done = run.exit_code == 0
    held_s = [
        e.held_s for e in events if isinstance(e, ev.SessionAdmitted) and e.session_id == session_id
    ]
    row.hold = f"{'yes' if is_done else 'no'}, {max(held_s, default=0.0):.0f} s"
    row.tools = _tools(client, session_id, events)
    written = work / "poem.txt"
    text = written.read_text(encoding="utf-8") if written.exists() else None
    row.stream = "yes" if text is not None and text.rstrip("\n") == POEM.rstrip("\n") else "no"
    if not is_done:
        row.stream += f": {_outcome(run)}"


def survived(client: Client, run: Run, work: Path) -> str:
    """Whether a run came to its end in spite of a new engine."""
    wanted = work / ("done.txt" if client.calls_tools else "poem.txt")
    if run.exit_code == 0 and wanted.exists():
        return f"yes, {run.duration_s:.0f} s in all"
    return f"no: {_outcome(run)}"


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for row in rows:
        values = (str(getattr(row, name)) or NONE for name in COLUMNS)
        lines.append([value.replace("|", "\\|").replace("\n", " ") for value in values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _outcome(run: Run) -> str:
    if run.exit_code is None:
        return f"still running after {run.duration_s:.0f} s"
    return f"exit code {run.exit_code}, {run.last_words!r}"


def _source(client: Client, request: TappedRequest, session_id: str) -> str:
    headers = {k: v for k, v in request.headers.items() if k != "x-session-id"}
    looked_at = peek(request.body)
    who = identify(headers, looked_at, None) if looked_at is not None else None
    if who is not None:
        return f"`{who.source}`"
    if not session_id.startswith("anon-"):
        return "`x-session-id`"
    return "tool-call ids it echoes" if client.calls_tools else "replies it echoes"


def _tools(client: Client, session_id: str, events: Sequence[ev.Event]) -> str:
    if not client.calls_tools:
        return "calls none"
    ended = [e for e in events if isinstance(e, ev.ToolFinished) and e.session_id == session_id]
    if not ended:
        return f"0 of {NUM_CALLS}"
    if measured := [e for e in ended if e.peak_bytes]:
        return _account(measured, events)
    excess_s = ended[0].duration_s - PAUSE_S
    return f"{len(ended)} of {NUM_CALLS}, first +{excess_s:.1f} s"


def _account(measured: Sequence[ev.ToolFinished], events: Sequence[ev.Event]) -> str:
    """What the tool runtime reports of the commands of one agent."""
    names = {e.tool_call_id for e in measured}
    queued_s = sum(
        e.queued_s for e in events if isinstance(e, ev.ToolStarted) and e.tool_call_id in names
    )
    excess_s = measured[0].duration_s - PAUSE_S
    cpu_s = sum(e.cpu_seconds for e in measured)
    peak_mib = max(e.peak_bytes for e in measured) / 2**20
    return (
        f"{len(measured)} commands measured, first +{excess_s:.2f} s: {cpu_s:.2f} CPU s, "
        f"{peak_mib:.0f} MiB, queued {queued_s:.1f} s"
    )


def _session(request: TappedRequest) -> str:
    return request.headers.get("x-session-id", "").removesuffix("/side")


def _is_aside(client: Client, request: TappedRequest, first: TappedRequest) -> bool:
    """No tools, or from an agent that has none: not the instructions that it began with."""
    if client.calls_tools:
        return not _has_tools(request)
    return _instructions(request) != _instructions(first)


def _instructions(request: TappedRequest) -> Any:
    try:
        return json.loads(request.body)["messages"][0]
    except (ValueError, LookupError, TypeError):
        return None


def _has_tools(request: TappedRequest) -> bool:
    try:
        return bool(json.loads(request.body).get("tools"))
    except ValueError:
        return False
