# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mars.gateway.identity import Identity, identify, peek, prompt_tokens, split_path
from mars.gateway.openai import ApiError

CLAUDE_USER = {"user_id": '{"session_id": "from-user-id"}'}
ALL_BY_RANK: list[tuple[str, dict[str, str], dict[str, Any], str | None]] = [
    ("x-mars-session", {"x-mars-session": "id"}, {}, None),
    ("session_id", {}, {"session_id": "id"}, None),
    ("x-session-id", {"x-session-id": "id"}, {}, None),
    ("vllm_xargs.session_id", {}, {"vllm_xargs": {"session_id": "id"}}, None),
    ("path", {}, {}, "id"),
    ("x-dynamo-session-id", {"x-dynamo-session-id": "id"}, {}, None),
    ("x-claude-code-session-id", {"x-claude-code-session-id": "id"}, {}, None),
    ("session-id", {"session-id": "id"}, {}, None),
    ("thread-id", {"thread-id": "id"}, {}, None),
    ("x-session-affinity", {"x-session-affinity": "id"}, {}, None),
    ("x-litellm-session-id", {"x-litellm-session-id": "id"}, {}, None),
    ("x-correlation-id", {"x-correlation-id": "id"}, {}, None),
    ("prompt_cache_key", {}, {"prompt_cache_key": "id"}, None),
    ("client_metadata.session_id", {}, {"client_metadata": {"session_id": "id"}}, None),
]


def found(
    headers: dict[str, str], body: dict[str, Any], path_id: str | None = None
) -> Identity | None:
    looked_at = peek(msgspec.json.encode(body))
    assert looked_at is not None
    return identify(headers, looked_at, path_id)


@pytest.mark.parametrize("rank", range(len(ALL_BY_RANK)), ids=[a[0] for a in ALL_BY_RANK])
def test_each_source_beats_all_that_come_after_it(rank: int) -> None:
    source, headers, body, path_id = ALL_BY_RANK[rank]
    headers, body = dict(headers), dict(body)
    for _, more_headers, more_body, more_path in ALL_BY_RANK[rank + 1 :]:
        headers |= dict.fromkeys(more_headers, "later")
        body |= {k: v if isinstance(v, dict) else "later" for k, v in more_body.items()}
        path_id = path_id or more_path
    assert found(headers, body, path_id) == Identity("id", source)


def test_claude_codes_user_id_is_looked_into() -> None:
    assert found({}, {"metadata": CLAUDE_USER}) == Identity("from-user-id", "metadata.user_id")
    assert found({}, {"metadata": {"user_id": "{broken"}}) is None
    assert found({}, {"metadata": {"user_id": "alice"}}) is None


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {}),
        ({"x-client-request-id": "rotates"}, {}),
        ({}, {"user": "alice"}),
        ({"x-session-id": ""}, {"session_id": None, "prompt_cache_key": 7}),
    ],
)
def test_what_does_not_name_a_session_is_not_taken_for_one(
    headers: dict[str, str], body: dict[str, Any]
) -> None:
    assert found(headers, body) is None


def test_sub_agents_are_sessions_of_their_own_with_a_parent() -> None:
    claude = {"x-claude-code-session-id": "main", "x-claude-code-agent-id": "a2"}
    assert found(claude, {}) == Identity("main/a2", "x-claude-code-session-id", "main")
    nested = claude | {"x-claude-code-parent-agent-id": "a1"}
    who = found(nested, {})
    assert who is not None
    assert who.parent == "main/a1"
    assert found({"x-session-id": "b", "x-parent-session-id": "a"}, {}) == Identity(
        "b", "x-session-id", "a"
    )


@pytest.mark.parametrize(("value", "is_final"), [("true", True), ("True", True), ("false", False)])
def test_the_final_request_is_marked(value: str, is_final: bool) -> None:
    who = found({"x-session-id": "s", "x-dynamo-session-final": value}, {})
    assert who is not None
    assert who.is_final is is_final


@pytest.mark.parametrize("bad", ["a\r\nX-Evil: 1", "a\x00", "ü", " a", "x" * 257])
def test_an_id_that_cannot_be_a_header_is_refused_by_name(bad: str) -> None:
    with pytest.raises(ApiError, match="session_id") as refused:
        found({}, {"session_id": bad})
    assert (refused.value.status, refused.value.param) == (400, "session_id")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/v1/models", (b"/v1/models", None)),
        (b"/s/task-1/v1/messages", (b"/v1/messages", "task-1")),
        (b"/s/a%2Fb/v1/chat/completions", (b"/v1/chat/completions", "a/b")),
        (b"/s//v1/models", (b"/s//v1/models", None)),
    ],
)
def test_the_session_is_taken_off_the_path(raw: bytes, expected: tuple[bytes, Any]) -> None:
    assert split_path(raw) == expected


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff\xfe", b'"text"'])
def test_a_body_that_is_no_object_shows_nothing(body: bytes) -> None:
    assert peek(body) is None


def test_prompt_length_is_exact_for_token_ids_and_estimated_for_text() -> None:
    ids = peek(b'{"prompt": [1, 2, 3, 40]}')
    text = peek(b'{"messages": [{"role":"user","content":"%s"}]}' % (b"x" * 4000))
    assert ids is not None
    assert text is not None
    assert prompt_tokens(ids) == 4
    assert 1000 <= prompt_tokens(text) <= 1020
