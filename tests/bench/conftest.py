# SPDX-License-Identifier: Apache-2.0
"""Sessions small enough to replay in a blink, with tools that are real processes."""

from __future__ import annotations

import pytest

from mars.traces.schema import TraceSession, TraceTool, TraceTurn

TOOL = TraceTool(name="test", duration_s=0.02, cpu_s=0.01, peak_bytes=1_000_000)


def session(session_id: str, num_turns: int = 3, **fields: object) -> TraceSession:
    """A session whose prompts grow by 50 tokens a turn; every turn ends with a tool."""
    turns = tuple(
        TraceTurn(prompt_tokens=100 + 50 * i, output_tokens=4 + i, tools=(TOOL,), gap_s=0.01)
        for i in range(num_turns)
    )
    return TraceSession(session_id=session_id, turns=turns, **fields)  # type: ignore[arg-type]


@pytest.fixture
def sessions() -> list[TraceSession]:
    """Three sessions of three turns."""
    return [session(f"s{i}", arrival_s=0.01 * i) for i in range(3)]
