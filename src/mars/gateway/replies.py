# SPDX-License-Identifier: Apache-2.0
"""What a passing reply says: its tool calls and its text, in any of the four APIs.

Read beside the stream, never in its way: malformed or oversized replies are read as far
as they make sense. The text is gone when the reply is complete; its hash stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_BODY_BYTES = 8 * 2**20
"""Of a reply that is not streamed; a longer one is not looked into."""
MAX_LINE_BYTES = 2**20
MAX_TEXT_CHARS = 2**20
MIN_QUOTED_CHARS = 40
"""A shorter reply ("Done.", "Ok, I will do that.") may be anybody's words (chosen)."""
MAX_FIRST_CHARS = 120
LAST_WORDS = frozenset(
    {"finish", "final_answer", "submit", "attempt_completion", "submit_and_exit"}
)
"""Calls by which a model says that its task is done (OpenHands, smolagents, SWE-agent, Cline)."""


@dataclass(slots=True, frozen=True)
class CalledTool:
    """A tool call as a reply asks for it."""

    tool_call_id: str
    tool_name: str


@dataclass(slots=True)
class ReplyReader:
    """Reads one reply chunk by chunk; ``tools`` and ``text_hash`` are right at its end.

    Args:
        is_stream: server-sent events, not one JSON object.
    """

    is_stream: bool
    response_id: str | None = None
    text_hash: str | None = None
    outline: tuple[str, int] | None = None
    """First line and number of lines of a text that is long enough to be known when quoted."""
    is_over: bool = False
    """The API's own last event has come: a client that leaves now has heard everything."""
    _tools: dict[str, CalledTool] = field(default_factory=dict[str, CalledTool])
    _text: list[str] = field(default_factory=list[str])
    _num_chars: int = 0
    _rest: bytes = b""

    @property
    def tools(self) -> list[CalledTool]:
        """Tool calls in the order in which they came."""
        return list(self._tools.values())

    @property
    def running_tools(self) -> list[CalledTool]:
        """Those of them that run something: no request ever brings the result of the rest."""
        return [tool for tool in self.tools if tool.tool_name not in LAST_WORDS]

    @property
    def has_tools(self) -> bool:
        """Whether a tool call has been seen."""
        return bool(self._tools)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk of the body."""
        self._rest += chunk
        if not self.is_stream:
            self._rest = self._rest[: MAX_BODY_BYTES + 1]
            return
        *lines, self._rest = self._rest.split(b"\n")
        self._rest = self._rest[:MAX_LINE_BYTES]
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:])

    def finish(self) -> None:
        """The body is complete."""
        if not self.is_stream and len(self._rest) <= MAX_BODY_BYTES:
            self._take(self._rest)
        text = "".join(self._text)
        if text.strip() and self._num_chars <= MAX_TEXT_CHARS:
            self.text_hash = text_hash(text)
            self.outline = _outline(text.strip())
        self._rest = b""
        self._text.clear()

    def _take(self, raw: bytes) -> None:
        try:
            part = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.is_over |= raw.strip() == b"[DONE]"
            return  # anything else is not for us to judge
        if isinstance(part, dict):
            self.is_over |= part.get("type") in {"response.completed", "message_stop"}
            self._chat(part)
            self._responses(part)
            self._anthropic(part)

    def _chat(self, part: dict[str, Any]) -> None:
        """Chat completions and completions, streamed (``delta``) or whole."""
        for choice in _dicts(part.get("choices")):
            message = choice.get("delta") or choice.get("message") or {}
            if not isinstance(message, dict):
                continue
            self._add_text(message.get("content") or choice.get("text"))
            for call in _dicts(message.get("tool_calls")):
                function = call.get("function")
                self._add(call.get("id"), function.get("name") if function else None)

    def _responses(self, part: dict[str, Any]) -> None:
        """Responses: output items, whole or one by one as they are done."""
        if part.get("object") == "response":
            self.response_id = part.get("id")
        if part.get("type") == "response.completed" and isinstance(part.get("response"), dict):
            self.response_id = part["response"].get("id")
        if part.get("type") == "response.output_text.delta":
            self._add_text(part.get("delta"))
        items = _dicts(part.get("output"))
        if part.get("type") == "response.output_item.done":
            items = _dicts([part.get("item")])
        for item in items:
            if item.get("type") == "function_call":
                self._add(item.get("call_id"), item.get("name"))
            elif not self.is_stream:
                for block in _dicts(item.get("content")):
                    self._add_text(block.get("text"))

    def _anthropic(self, part: dict[str, Any]) -> None:
        """Messages: content blocks, whole or as they start."""
        delta = part.get("delta")
        if part.get("type") == "content_block_delta" and isinstance(delta, dict):
            self._add_text(delta.get("text"))
        blocks = _dicts(part.get("content"))
        if part.get("type") == "content_block_start":
            blocks = _dicts([part.get("content_block")])
        for block in blocks:
            if block.get("type") == "tool_use":
                self._add(block.get("id"), block.get("name"))
            else:
                self._add_text(block.get("text"))

    def _add(self, call_id: Any, name: Any) -> None:
        if isinstance(call_id, str) and call_id:
            known = name if isinstance(name, str) else "unknown"
            self._tools.setdefault(call_id, CalledTool(call_id, known))

    def _add_text(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self._num_chars += len(text)
            if self._num_chars <= MAX_TEXT_CHARS:
                self._text.append(text)


def text_hash(text: str) -> str:
    """The hash by which a reply's text is known again; white space around it is not."""
    return hashlib.sha256(text.strip().encode(errors="surrogatepass")).hexdigest()


def _outline(text: str) -> tuple[str, int] | None:
    if len(text) < MIN_QUOTED_CHARS:
        return None
    return first_words(text.partition("\n")[0]), text.count("\n") + 1


def first_words(line: str) -> str:
    """What is kept of the first line of a reply."""
    return line.strip()[:MAX_FIRST_CHARS]


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    if isinstance(values, list):
        yield from (value for value in values if isinstance(value, dict))
