# SPDX-License-Identifier: Apache-2.0
"""When a session that has a name is over although nobody says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import Site

TOOLS = [{"type": "function", "function": {"name": "bash"}}]
BASH = {"id": "c1", "name": "bash"}
FINISH = {"id": "c2", "name": "finish"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_named_session_ends_when_its_model_calls_the_task_done(
    site: Site, stream: bool
) -> None:
    await site.chat("one", tools=TOOLS, fake_tools=[BASH], stream=stream)
    await site.chat("one", tools=TOOLS, fake_tools=[FINISH], stream=stream)
    await site.event("session_ended", session_id="one", reason="final_answer", num_turns=2)
    await site.chat("one", tools=TOOLS, fake_tools=[BASH], stream=stream)
    await site.event("session_arrived", session_id="one", generation=1)


async def test_a_call_that_runs_beside_the_last_words_keeps_the_session(site: Site) -> None:
    await site.chat("one", tools=TOOLS, fake_tools=[BASH, FINISH])
    assert [s["session_id"] for s in (await site.state())["active"]] == ["one"]


@pytest.mark.parametrize(
    ("fields", "answered"),
    [
        ({"tools": TOOLS}, True),
        ({"tools": TOOLS, "fake_tools": [BASH]}, False),
        ({}, False),  # it reads its actions from text, or is no agent
    ],
)
async def test_a_reply_without_calls_means_something_only_where_tools_were_offered(
    site: Site, fields: dict[str, Any], answered: bool
) -> None:
    await site.chat("one", **fields)
    assert site.gateway.admission.active.sessions["one"].has_answered is answered
