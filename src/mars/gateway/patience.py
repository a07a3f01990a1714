# SPDX-License-Identifier: Apache-2.0
"""How long each client bears to be held, on which API, and which signs of life it takes.

All rows were run against the clients themselves (CLIENTS sections 1.5, 2 and 7), but for
the last of each API, which is what an unknown client gets: ``UNKNOWN_S`` is below the
shortest silent limit seen (Qwen Code, 120 s). A client is told by its ``User-Agent`` and by
the headers only it sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mars.gateway.heartbeat import Heartbeat, heartbeat_of

UNKNOWN_S = 100.0
READ_TIMEOUT_S = 280.0
"""Below the read timeout of 300 s that most agents have."""


class Family(StrEnum):
    """Clients whose patience is known."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENCODE = "opencode"
    OPENHANDS = "openhands"
    QWEN_CODE = "qwen-code"
    GEMINI = "gemini"
    UNKNOWN = "unknown"


_AGENTS = (
    ("claude-cli", Family.CLAUDE_CODE),
    ("codex", Family.CODEX),
    ("opencode", Family.OPENCODE),
    ("openhands", Family.OPENHANDS),
    ("qwencode", Family.QWEN_CODE),
    ("qwen-code", Family.QWEN_CODE),
    ("geminicli", Family.GEMINI),
    ("gemini-cli", Family.GEMINI),
)
_OWN_HEADERS = (
    ("x-claude-code-session-id", Family.CLAUDE_CODE),
    ("x-codex-window-id", Family.CODEX),
)


@dataclass(slots=True, frozen=True)
class Patience:
    """What a held client gets.

    Attributes:
        heartbeat: sent again and again while it is held; None: it bears none.
        budget_s: held at most so long before it is asked to come back; None: without end,
            as long as the heartbeat reaches it.
        silent_s: how long it waits for the first byte of a reply without a heartbeat.
    """

    heartbeat: Heartbeat | None
    budget_s: float | None
    silent_s: float


SILENT_S: dict[Family, float] = {
    Family.CLAUDE_CODE: READ_TIMEOUT_S,  # cut at 300 s whatever is sent; then retries
    Family.CODEX: READ_TIMEOUT_S,  # stream comments do not count; in_progress events do
    Family.OPENCODE: READ_TIMEOUT_S,  # 300 s, then retries
    Family.OPENHANDS: READ_TIMEOUT_S,  # 300.1 s, then retries after 8 s
    Family.QWEN_CODE: UNKNOWN_S,  # 120 s, then retries
}
"""Family -> longest silent hold; for those without a heartbeat."""


def family_of(headers: Mapping[str, str]) -> Family:
    """Which client sent this request; headers by lower-case name."""
    for name, family in _OWN_HEADERS:
        if name in headers:
            return family
    agent = headers.get("user-agent", "").lower()
    title = headers.get("x-title", "").lower()
    return next((f for mark, f in _AGENTS if mark in agent or mark in title), Family.UNKNOWN)


def patience_of(
    headers: Mapping[str, str], path: bytes, *, is_stream: bool, budget_s: float | None
) -> Patience:
    """What the client of a request bears.

    Args:
        headers: by lower-case name.
        path: the API.
        is_stream: the reply is streamed.
        budget_s: ``gateway.hold_budget_s``, which overrides the table for silent holds.
    """
    family = family_of(headers)
    # Comments break the parser of Gemini's client, which repeats the request.
    is_codex = family is Family.CODEX
    heartbeat = heartbeat_of(path, is_stream=is_stream, is_codex=is_codex)
    heartbeat = None if family is Family.GEMINI else heartbeat
    silent_s = budget_s or SILENT_S.get(family, UNKNOWN_S)
    return Patience(heartbeat, silent_s if heartbeat is None else None, silent_s)
