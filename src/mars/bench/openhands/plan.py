# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions as tasks for OpenHands: what it is told, and what each reply makes it do.

A session's first prompt becomes the task's text, each recorded reply a scripted one of the
same length, each recorded tool a real command in the task's workspace: it uses the recorded
CPU seconds and memory within the (dilated) duration and prints as many tokens as the
recording's next prompt grew by. Edits are done by OpenHands' file editor. What OpenHands adds
itself (its instructions and tool schemas, the same for every task) comes on top.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mars.bench.openhands.tasks import fill_workspace, instruction
from mars.engine.emulated.model_dir import filler_text
from mars.tools import burn
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

MAX_OUTPUT_TOKENS = 12_000
"""Of one tool: OpenHands cuts a longer output (30,000 characters; two a token)."""
CALL_TOKENS = 120
"""What a scripted call itself takes of a reply, about."""
TOOL = "run-tool"
_SCRIPT = """\
#!/bin/sh
# {label} CPU-SECONDS WALL-SECONDS BYTES SKIP TOKENS
{python} -I -S {burn} --cpu-s $1 --wall-s $2 --bytes $3
tail -c +$4 .filler | head -c $(($5 * 2))
echo
"""


def conversation_id(session_id: str, seed: int) -> str:
    """The id of a task's conversation, by which MARS knows its session."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mars:{seed}:{session_id}"))


def script_name(session_id: str) -> str:
    """The task's script: letters that the mark in its text may have."""
    return "".join(c if c.isalnum() or c in "._@-" else "-" for c in session_id)


def task_text(session: TraceSession) -> str:
    """What OpenHands is told: the mark, and as much text as the recording began with."""
    if session.live is not None:
        return f"{instruction(session)}\n[[mars:{script_name(session.session_id)}]]"
    words = filler_text(f"task:{session.session_id}", session.turns[0].prompt_tokens)
    return f"Work on the task. [[mars:{script_name(session.session_id)}]]\n{words}"


def prepare_workspace(session: TraceSession, work: Path) -> None:
    """Make the folder with the tool and the text that it prints from."""
    work.mkdir(parents=True, exist_ok=True)
    if session.live is not None:
        fill_workspace(session, work)
    tool = work / TOOL
    tool.write_text(_SCRIPT.format(label=TOOL, python=sys.executable, burn=burn.__file__))
    tool.chmod(0o755)
    (work / ".filler").write_text(filler_text(f"out:{session.session_id}", 2 * MAX_OUTPUT_TOKENS))


def write_scripts(
    path: Path, sessions: Sequence[TraceSession], works: Sequence[Path], time_scale: float
) -> None:
    """Write what the emulated engine answers, for all tasks."""
    lines = (
        json.dumps(script(session, work, time_scale))
        for session, work in zip(sessions, works, strict=True)
    )
    path.write_text("\n".join(lines), encoding="utf-8")


def script(session: TraceSession, work: Path, time_scale: float) -> dict[str, Any]:
    """All replies to one task; the last one ends it."""
    steps: list[dict[str, Any]] = []
    for index, turn in enumerate(session.turns):
        after = session.turns[index + 1] if index + 1 < len(session.turns) else None
        words = filler_text(
            f"reply:{session.session_id}:{index}", max(1, turn.output_tokens - CALL_TOKENS)
        )
        is_last = after is None
        steps.append(
            {
                "text": words,
                "calls": [] if is_last else [_call(turn, index, after, work, time_scale)],
            }
        )
    return {"script": script_name(session.session_id), "steps": steps}


def _call(
    turn: TraceTurn, index: int, after: TraceTurn | None, work: Path, time_scale: float
) -> dict[str, Any]:
    grown = (after.prompt_tokens if after else 0) - turn.prompt_tokens - turn.output_tokens
    num_tokens = max(0, min(MAX_OUTPUT_TOKENS, grown))
    tool = turn.tools[0] if turn.tools else TraceTool(name="shell", duration_s=0.0)
    if tool.name == "edit":
        text = filler_text(f"edit:{index}", min(num_tokens, turn.output_tokens))
        return {"write": {"path": str(work / f"edited-{index}.txt"), "content": text}}
    wall_s = sum(t.duration_s for t in turn.tools) * time_scale
    cpu_s = sum(t.cpu_s for t in turn.tools)
    peak = max((t.peak_bytes for t in turn.tools), default=0)
    skip = 1 + 2 * (index * 97 % MAX_OUTPUT_TOKENS)
    return {"run": f"./{TOOL} {cpu_s:.3f} {wall_s:.3f} {peak} {skip} {num_tokens}"}
