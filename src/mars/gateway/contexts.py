# SPDX-License-Identifier: Apache-2.0
"""Recognises what a request is to its session: the next step, a side call, a new epoch.

An agent's prompts extend one another (CLIENTS section 3.1). One that does not is, in order,

- a side call, if it brings no tools and the session's steps do (title, summary);
- another line of the same session (parallel sub-agents), while a turn of it is open or a
  tool call of it is unanswered by the request;
- else a new epoch: the client compacted, what is cached of the old prompt is dead. Codex
  says so itself by ``x-codex-window-id``.

Prompts are compared by checksums of their chunks, 4 bytes for each KiB.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from mars.core import events as ev
from mars.core.model import Session
from mars.gateway.identity import BYTES_PER_TOKEN, Peek
from mars.gateway.replies import CalledTool

CHUNK_BYTES = 1024
MIN_BYTES = 8 * CHUNK_BYTES
"""A prompt shorter than this starts no epoch: there is nothing to win (chosen)."""
MAX_LINES = 4
"""Parallel lines of one session that are told apart (chosen)."""
SAME_SHARE = 0.5
"""Of a prompt that the next one repeats at least: retries, moved cache marks and cut
replies change its end, a compaction leaves the system prompt at most (chosen)."""
SHRUNK_SHARE = 0.9
"""A prompt shorter than this share of the one before, and that left it earlier, shrank."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """What a request is; ``reason`` of a new epoch, of which so many tokens are kept."""

    is_side: bool = False
    reason: str | None = None
    num_kept_tokens: int = 0


@dataclass(slots=True)
class Line:
    """The last prompt of one line."""

    sums: array[int]
    num_bytes: int
    has_tools: bool


@dataclass(slots=True)
class Context:
    """What is known of one session's prompts."""

    lines: list[Line] = field(default_factory=list[Line])
    """Who spoke last is last."""
    window: str | None = None
    has_tools: bool = False
    unanswered: set[bytes] = field(default_factory=set[bytes])


class Contexts:
    """The contexts of all sessions that live."""

    def __init__(self) -> None:
        self._contexts: dict[str, Context] = {}

    def judge(
        self, session: Session, headers: Mapping[str, str], looked_at: Peek, body: bytes
    ) -> Verdict:
        """What this request is to its session; to be asked once, before its turn begins."""
        context = self._contexts.setdefault(session.session_id, Context())
        text = bytes(looked_at.messages) or bytes(looked_at.input) or bytes(looked_at.prompt)
        line = Line(_sums(text), len(text), looked_at.offers_tools)
        known = max(context.lines, key=lambda old: _share(old, line), default=None)
        kept_bytes = _kept_bytes(known, line) if known else 0
        is_next = known is not None and _share(known, line) >= SAME_SHARE
        if context.has_tools and not line.has_tools and not is_next:
            return Verdict(is_side=True)
        context.unanswered = {c for c in context.unanswered if c not in body}
        reason = self._reason(context, headers, known, line, is_next=is_next)
        if reason not in {None, "window"}:
            is_quiet = not session.num_open_turns and not context.unanswered
            is_delta = isinstance(looked_at.previous_response_id, str)
            reason = reason if is_quiet and not is_delta else None
        context.has_tools |= line.has_tools
        if reason is not None:
            context.lines = [line]
            context.unanswered.clear()
            fixed = len(bytes(looked_at.tools)) + len(bytes(looked_at.system))
            return Verdict(reason=reason, num_kept_tokens=(kept_bytes + fixed) // BYTES_PER_TOKEN)
        if known is not None and (is_next or (line.has_tools and not known.has_tools)):
            line.has_tools |= known.has_tools  # a summary of it has none
            context.lines.remove(known)
        context.lines = [*context.lines, line][-MAX_LINES:]
        return Verdict()

    def replied(self, session_id: str, tools: list[CalledTool]) -> None:
        """A reply asked for these tools; the next step brings their results."""
        context = self._contexts.get(session_id)
        if context is not None:
            context.unanswered.update(t.tool_call_id.encode() for t in tools)

    def apply(self, event: ev.Event) -> None:
        """Forget ended sessions."""
        if isinstance(event, ev.SessionEnded):
            self._contexts.pop(event.session_id, None)

    def _reason(
        self,
        context: Context,
        headers: Mapping[str, str],
        known: Line | None,
        line: Line,
        *,
        is_next: bool,
    ) -> str | None:
        before, context.window = context.window, headers.get("x-codex-window-id", context.window)
        if before is not None and before != context.window:
            return "window"
        if known is None or known.num_bytes < MIN_BYTES or known.has_tools != line.has_tools:
            return None
        if not is_next:
            return "prefix"
        limit = SHRUNK_SHARE * known.num_bytes
        return "shrunk" if line.num_bytes < limit and _kept_bytes(known, line) < limit else None


def _sums(text: bytes) -> array[int]:
    """Checksums of the whole chunks of a text."""
    view = memoryview(text)
    starts = range(0, len(text) - CHUNK_BYTES + 1, CHUNK_BYTES)
    return array("I", (zlib.crc32(view[at : at + CHUNK_BYTES]) for at in starts))


def _kept_bytes(old: Line, new: Line) -> int:
    """Length of the prefix that both have, in whole chunks."""
    if old.sums == new.sums[: len(old.sums)]:
        return len(old.sums) * CHUNK_BYTES
    differs = (i for i, (a, b) in enumerate(zip(old.sums, new.sums, strict=False)) if a != b)
    return next(differs, min(len(old.sums), len(new.sums))) * CHUNK_BYTES


def _share(old: Line, new: Line) -> float:
    """Share of the old prompt's chunks that the new one begins with; 1 of one without any."""
    return _kept_bytes(old, new) / (len(old.sums) * CHUNK_BYTES) if old.sums else 1.0
