# SPDX-License-Identifier: Apache-2.0
"""What the agents are asked to do, as scripts for the emulated engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mars.bench.agents.clients import Client

PHASES = ("main", "tool", "reply")
"""The task under a hold; the engine restarted during a tool; and during a reply."""
PAUSE_S = 1.5
"""What the first tool sleeps: Qwen Code refuses to sleep for 2 s."""
BUSY = "head -c 50000000 /dev/zero | sha256sum"
"""Something for a tool runtime to measure: a few tenths of a CPU second."""
POEM = "Zeile \u2013 äöü ✓ “q” \\ $x `y` {z} <w>\n" * 20
"""Written by the agent: every kind of character that quoting or a cut stream might harm."""
LONG_REPLY = "And so on, at length. " * 250
"""About 5,500 tokens of the emulated model: a minute of streaming at half speed, so that it is
still under way when the slowest agent has come to it."""
NUM_CALLS = 3


def mark(client: Client, phase: str) -> str:
    """What names the script of a task; part of every request that belongs to it."""
    return f"[[mars:{client.name}.{phase}"


def task(client: Client, phase: str) -> str:
    """The task as the agent is given it."""
    return f"Do the work. {mark(client, phase)}]]"


def workspace(out: Path, client: Client, phase: str) -> Path:
    """Where the agent works."""
    return out / client.name / phase / "work"


def write_scripts(path: Path, out: Path, clients: list[Client]) -> None:
    """Write the scripts of all agents and phases."""
    lines = [
        json.dumps(
            {
                "script": f"{client.name}.{phase}",
                "steps": _steps(client, phase, workspace(out, client, phase)),
            }
        )
        for client in clients
        for phase in PHASES
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _steps(client: Client, phase: str, work: Path) -> list[dict[str, Any]]:
    if not client.calls_tools:
        return _edits(phase)
    done = _step("Done.", write={"path": str(work / "done.txt"), "content": "done\n"})
    last = {"text": "All done: ÄÖ✓"}
    if phase == "main":
        return [
            _step("I look first.", run=f"sleep {PAUSE_S}; echo looked > look.txt"),
            _step("Now the file.", write={"path": str(work / "poem.txt"), "content": POEM}),
            _step("Check it.", run=f"{BUSY}; sha256sum poem.txt"),
            last,
        ]
    if phase == "tool":
        wait = "touch started; while [ ! -e go ]; do sleep 0.2; done"
        return [_step("This takes a while.", run=wait), done, last]
    begin = _step("I begin.", run="touch started")
    return [begin, {**done, "text": LONG_REPLY}, last]


def _step(text: str, **call: Any) -> dict[str, Any]:
    return {"text": text, "calls": [call]}


def _edits(phase: str) -> list[dict[str, Any]]:
    """For an agent without tools: whole files, the second after its test has failed."""
    first = {"text": f"Begin.\n\npoem.txt\n```\nfirst\n```\n{LONG_REPLY * (phase == 'reply')}"}
    return [first, {"text": f"Now the file.\n\npoem.txt\n```\n{POEM}```\n"}, {"text": "Done."}]
