# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.gateway.patience import Family, family_of, patience_of

CHAT, RESPONSES, MESSAGES = b"/v1/chat/completions", b"/v1/responses", b"/v1/messages"


@pytest.mark.parametrize(
    ("headers", "family"),
    [
        ({"user-agent": "claude-cli/2.1.197 (external, cli)"}, Family.CLAUDE_CODE),
        ({"x-claude-code-session-id": "a", "user-agent": "x"}, Family.CLAUDE_CODE),
        ({"user-agent": "codex_exec/0.169.0 (Linux)"}, Family.CODEX),
        ({"user-agent": "opencode/1.18.33 ai-sdk/provider-utils"}, Family.OPENCODE),
        ({"user-agent": "QwenCode/0.15.10 (linux; x64)"}, Family.QWEN_CODE),
        ({"user-agent": "AsyncOpenAI/Python 2.1", "x-title": "OpenHands"}, Family.OPENHANDS),
        ({"user-agent": "OpenAI/Python 2.1"}, Family.UNKNOWN),
        ({}, Family.UNKNOWN),
    ],
)
def test_a_client_is_known_by_what_only_it_sends(headers: dict[str, str], family: Family) -> None:
    assert family_of(headers) is family


def patience(agent: str, path: bytes, *, stream: bool, budget_s: float | None = None) -> object:
    found = patience_of({"user-agent": agent}, path, is_stream=stream, budget_s=budget_s)
    return found.heartbeat.chunk[:2] if found.heartbeat else None, found.budget_s


def test_each_api_gets_the_sign_of_life_that_its_clients_bear() -> None:
    assert patience("opencode/1", CHAT, stream=True) == (b": ", None)
    assert patience("OpenAI/Python", CHAT, stream=False) == (b" \n", None)
    assert patience("codex/0", RESPONSES, stream=True) == (b"ev", None)
    assert patience("claude-cli/2", MESSAGES, stream=True) == (None, 280.0)


def test_who_bears_no_sign_of_life_has_a_budget_and_the_unknown_the_shortest() -> None:
    assert patience("GeminiCLI/0.61", CHAT, stream=True) == (None, 100.0)
    assert patience("python-requests", MESSAGES, stream=False) == (None, 100.0)
    assert patience("claude-cli/2", MESSAGES, stream=True, budget_s=30.0) == (None, 30.0)
