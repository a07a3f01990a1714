# SPDX-License-Identifier: Apache-2.0
"""``mas_task_v1``: tasks for live agents, as the MARS preview's workloads hold them.

A task has an instruction and, perhaps, files and a repository for its workspace. What the
agent then does is up to the model behind it; on the emulated accelerator the task's
``replay`` section scripts the replies, and without one the first reply ends the task.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from mars.bench.scenario import ScenarioError
from mars.traces.arrivals import arrival_times
from mars.traces.importers.mas_task import read_mas_task
from mars.traces.schema import TraceSession, TraceTurn

INSTRUCTIONS = ("problem_statement", "instruction", "prompt", "text", "question")
"""Where payloads have what the agent is told; the first that is there."""
REPOSITORY = "repo_cache_path"
BYTES_PER_TOKEN = 4
ONLY_REPLY_TOKENS = 130


def read_tasks(
    path: Path, num_tasks: int | None, rate_per_s: float, seed: int
) -> list[TraceSession]:
    """Tasks with arrivals, and with at least one turn each.

    Args:
        path: a file of ``mas_task_v1`` lines.
        num_tasks: only so many, the first ones; None: all.
        rate_per_s: of their Poisson arrivals.
        seed: of these.

    Raises:
        TraceError: a line is none.
        ScenarioError: a task does not say what to do, or there is none.
    """
    tasks = list(read_mas_task(path))[:num_tasks]
    if not tasks:
        raise ScenarioError(f"{path} has no task")
    times = arrival_times(len(tasks), rate_per_s, seed=seed)
    return [
        msgspec.structs.replace(
            task, arrival_s=float(at), turns=task.turns or (_only_turn(task, path),)
        )
        for task, at in zip(tasks, times, strict=True)
    ]


def instruction(task: TraceSession, path: Path | str = "the task") -> str:
    """What the agent is told.

    Raises:
        ScenarioError: the payload does not say.
    """
    payload: dict[str, Any] = (task.live or {}).get("payload", {})
    found = next((payload[n] for n in INSTRUCTIONS if isinstance(payload.get(n), str)), None)
    if found is None:
        raise ScenarioError(
            f"{path}: the payload of {task.session_id!r} has none of {', '.join(INSTRUCTIONS)}"
        )
    return found


def fill_workspace(task: TraceSession, work: Path) -> None:
    """Copy its repository, if it is at hand, and write its files.

    Raises:
        ScenarioError: the repository is named and not there.
    """
    live = task.live or {}
    named = live.get("payload", {}).get(REPOSITORY)
    if isinstance(named, str):
        source = Path(os.path.expandvars(named))
        if not source.is_dir():
            raise ScenarioError(
                f"{task.session_id}: {REPOSITORY} {named!r} is not a folder; "
                "set the variable in it, or take the field out"
            )
        shutil.copytree(source, work, dirs_exist_ok=True, symlinks=True)
    for file in live.get("workspace_init", ()):
        target = work / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file["content"], encoding="utf-8")


def _only_turn(task: TraceSession, path: Path) -> TraceTurn:
    text = instruction(task, path)
    prompt_tokens = (task.live or {}).get("prefill_tokens") or len(text) // BYTES_PER_TOKEN
    return TraceTurn(prompt_tokens=max(1, prompt_tokens), output_tokens=ONLY_REPLY_TOKENS)
