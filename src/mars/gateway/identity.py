# SPDX-License-Identifier: Apache-2.0
"""Which session a request belongs to, from what agents already send.

Order (CLIENTS section 7, ECOSYSTEM section 5): explicit ids (``X-MARS-Session``, body
``session_id``, ``X-Session-ID``, ``vllm_xargs.session_id``, ``/s/<id>/`` in the path,
``X-Dynamo-Session-ID``), then the ids of known agents (Claude Code, Codex, opencode,
OpenHands through litellm, aiperf), then ``prompt_cache_key`` and ``metadata.user_id``.
A request without any is recognised by what it echoes (:mod:`mars.gateway.echo`), else new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec

from mars.gateway.openai import ApiError
from mars.gateway.tenants import DEFAULT

MAX_ID_LENGTH = 256
BYTES_PER_TOKEN = 4
"""Prompt text per token when only bytes are known (English and code, rule of thumb)."""

_SESSION_PATH = re.compile(rb"^/s/([^/]+)(/v1(?:/.*)?)$")
_PRINTABLE = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_PARENTS = ("x-parent-session-id", "x-dynamo-parent-session-id")
_AFTER_PATH = (
    "x-dynamo-session-id",
    "x-claude-code-session-id",
    "session-id",
    "thread-id",
    "x-session-affinity",
    "x-litellm-session-id",
    "x-correlation-id",
)


class Peek(msgspec.Struct):
    """The few body fields that are looked at; the body itself goes on untouched."""

    session_id: Any = None
    vllm_xargs: Any = None
    prompt_cache_key: Any = None
    previous_response_id: Any = None
    client_metadata: Any = None
    metadata: Any = None
    priority: Any = None
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")

    @property
    def offers_tools(self) -> bool:
        """Whether the model is told of any tool."""
        return len(bytes(self.tools)) > len(b"[]")


_peek_decoder = msgspec.json.Decoder(Peek)


@dataclass(slots=True, frozen=True)
class Identity:
    """Whose request it is. ``source`` names the field or header that said so."""

    session_id: str
    source: str
    parent: str | None = None
    is_final: bool = False
    tenant: str = DEFAULT


def peek(body: bytes) -> Peek | None:
    """The looked-at fields, or None when the body is not a JSON object."""
    try:
        return _peek_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def split_path(raw_path: bytes) -> tuple[bytes, str | None]:
    """Take ``/s/<id>`` off the path: the path to send on, and the id if there was one."""
    match = _SESSION_PATH.match(raw_path)
    if match is None:
        return raw_path, None
    return match[2], unquote(match[1].decode("latin-1"))


def identify(headers: Mapping[str, str], body: Peek, path_id: str | None) -> Identity | None:
    """The session of a request; None where nothing names one.

    Args:
        headers: by lower-case name.
        body: what :func:`peek` found.
        path_id: what :func:`split_path` found.

    Raises:
        ApiError: an id that cannot be sent on in a header.
    """
    named = _explicit(headers, body, path_id) or _known_agent(headers, body)
    if named is None:
        return None
    session_id, source = named
    parent = next((headers[name] for name in _PARENTS if headers.get(name)), None)
    if source == "x-claude-code-session-id" and (agent := headers.get("x-claude-code-agent-id")):
        above = headers.get("x-claude-code-parent-agent-id")
        parent = f"{session_id}/{above}" if above else session_id
        session_id = f"{session_id}/{agent}"
    _check(session_id, source)
    is_final = headers.get("x-dynamo-session-final", "").lower() == "true"
    return Identity(session_id, source, parent, is_final)


def prompt_tokens(body: Peek) -> int:
    """Estimate of the prompt's tokens: exact for token ids, else by length of the text."""
    prompt = bytes(body.prompt).strip()
    if prompt.startswith(b"[") and not prompt.startswith(b'["') and len(prompt) > len(b"[]"):
        return prompt.count(b",") + 1
    parts = (prompt, body.messages, body.input, body.tools, body.system)
    return sum(len(bytes(part)) for part in parts) // BYTES_PER_TOKEN


def max_output_tokens(body: Peek) -> int:
    """The reply's allowed length, 0 when the request names none."""
    for value in (body.max_completion_tokens, body.max_tokens):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _explicit(
    headers: Mapping[str, str], body: Peek, path_id: str | None
) -> tuple[str, str] | None:
    xargs = body.vllm_xargs if isinstance(body.vllm_xargs, dict) else {}
    candidates = (
        (headers.get("x-mars-session"), "x-mars-session"),
        (body.session_id, "session_id"),
        (headers.get("x-session-id"), "x-session-id"),
        (xargs.get("session_id"), "vllm_xargs.session_id"),
        (path_id, "path"),
    )
    return next(((v, s) for v, s in candidates if isinstance(v, str) and v), None)


def _known_agent(headers: Mapping[str, str], body: Peek) -> tuple[str, str] | None:
    for name in _AFTER_PATH:
        if value := headers.get(name):
            return value, name
    client = body.client_metadata if isinstance(body.client_metadata, dict) else {}
    candidates = (
        (body.prompt_cache_key, "prompt_cache_key"),
        (client.get("session_id"), "client_metadata.session_id"),
        (_user_session(body.metadata), "metadata.user_id"),
    )
    return next(((v, s) for v, s in candidates if isinstance(v, str) and v), None)


def _user_session(metadata: Any) -> Any:
    """Claude Code's ``metadata.user_id`` is JSON text with a ``session_id``."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str) or not user.startswith("{"):
        return None
    try:
        return msgspec.json.decode(user, type=dict[str, Any]).get("session_id")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _check(session_id: str, source: str) -> None:
    if len(session_id) > MAX_ID_LENGTH or not _PRINTABLE.fullmatch(session_id):
        raise ApiError(
            400,
            f"the session id in {source} must be 1 to {MAX_ID_LENGTH} printable ASCII characters",
            param=source,
        )
