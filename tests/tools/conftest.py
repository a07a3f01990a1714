# SPDX-License-Identifier: Apache-2.0
"""Real processes, contained in both ways: in control groups where there are, and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mars.tools.process import ToolRunner
from mars.tools.request import ToolLimits, ToolRequest


@pytest.fixture(params=["groups", "no-groups"])
def runner(request: pytest.FixtureRequest) -> Iterator[ToolRunner]:
    """A runner with whatever control groups this machine allows, and one with none."""
    made = ToolRunner("auto" if request.param == "groups" else None)
    yield made
    made.close()


def shell(script: str, **fields: object) -> ToolRequest:
    """A request that runs a shell script."""
    fields = {"session_id": "s1", "tool_call_id": "c1", "tool_name": "bash", **fields}
    return ToolRequest(argv=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]


def limits(**fields: object) -> ToolLimits:
    """Limits by name."""
    return ToolLimits(**fields)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
