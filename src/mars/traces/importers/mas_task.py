# SPDX-License-Identifier: Apache-2.0
"""``mas_task_v1``: tasks for live agents, as the MARS preview's workloads hold them.

A task has no turns: the session carries it under ``live`` and is refused where turns are needed
(:func:`mars.traces.schema.require_turns`). An optional ``replay`` section, ``{"turns": [...]}``
with turns of ``mars.trace/1``, makes the same line replayable; other readers ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from mars.traces.errors import TraceError
from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Positive, TraceSession, TraceTurn


class _File(Struct):
    path: str
    content: str


class _Replay(Struct):
    turns: tuple[TraceTurn, ...]


class _Task(Struct):
    schema: Literal["mas_task_v1"]
    payload: dict[str, Any]
    benchmark: str = "unknown"
    task_id: str | None = None
    request_id: str | None = None
    prefill_tokens: Positive | None = None
    workspace_init: tuple[_File, ...] = ()
    replay: _Replay | None = None


def read_mas_task(path: str | Path) -> Iterator[TraceSession]:
    """Read tasks as sessions, in file order.

    Raises:
        TraceError: a task has no id, or a file of its workspace would lie outside of it.
    """
    for line, task in read_rows(path, _Task):
        session_id = task.request_id or task.task_id
        if not session_id:
            raise TraceError(
                "the task has no id. Add task_id or request_id.",
                source=str(path),
                line=line,
                field="task_id",
            )
        for index, file in enumerate(task.workspace_init):
            _check_path(file.path, index, path, line)
        session = TraceSession(
            session_id=session_id,
            turns=task.replay.turns if task.replay else (),
            task=task.task_id or session_id,
            source="mas_task_v1",
            live={
                "benchmark": task.benchmark,
                "payload": task.payload,
                "prefill_tokens": task.prefill_tokens,
                "workspace_init": [
                    {"path": file.path, "content": file.content} for file in task.workspace_init
                ],
            },
        )
        yield checked(session, path, line)


def _check_path(name: str, index: int, path: str | Path, line: int) -> None:
    if not name or name.startswith(("/", "~")) or ".." in Path(name).parts:
        raise TraceError(
            f"{name!r} leaves the workspace. Give a relative path without '..'.",
            source=str(path),
            line=line,
            field=f"workspace_init[{index}].path",
        )
