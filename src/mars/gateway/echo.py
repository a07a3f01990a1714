# SPDX-License-Identifier: Apache-2.0
"""Recognises sessions that name no id by what their clients echo of our replies.

In order: ``previous_response_id``, the ids of our tool calls, then the text of our own
replies (CLIENTS section 3: 68 of 68 links right, against prompt-prefix hashing, which puts
identical tasks into one session). What two sessions both echo decides nothing: a
wrong merge is worse than a new session.

A first request without tools that quotes a whole reply amidst a longer text is a side call of
that session: how aider has its history summarised.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mars.gateway.identity import Peek
from mars.gateway.replies import ReplyReader, first_words, text_hash

MAX_KEYS = 50_000
"""Echoes remembered, about 15 MB of them; a thousand sessions of fifty turns (chosen)."""
MAX_LOOKUPS = 64
"""Of one request, newest first: an agent's last turn is what tells."""
MAX_LINES = 20_000
"""Of one request that are searched for quotations, about 5 ms of time (chosen)."""
MAX_LENGTHS = 8
"""Replies of different lengths that begin with the same line and are told apart (chosen)."""


_MENTIONED = re.compile(rb"\b(?:chatcmpl-tool-|call_|toolu_)[0-9A-Za-z]{8,}")
"""Ids of tool calls within text, as vLLM, OpenAI and Anthropic make them: smolagents tells
its history in words."""


class EchoIndex:
    """What was said to whom, the latest sayings first to be remembered.

    Args:
        max_keys: sayings remembered.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._said: OrderedDict[str, str | None] = OrderedDict()
        self._lengths: OrderedDict[str, list[int]] = OrderedDict()
        """First line of a reply -> how many lines such replies have."""

    def __len__(self) -> int:
        return len(self._said)

    def remember(self, session_id: str, reply: ReplyReader) -> None:
        """Our reply to this session had these tool calls and this text."""
        for tool in reply.tools:
            self._put(f"call:{tool.tool_call_id}", session_id)
        if reply.text_hash is not None:
            self._put(f"text:{reply.text_hash}", session_id)
        if reply.outline is not None:
            self._note(*reply.outline)
        if reply.response_id is not None:
            self._put(f"response:{reply.response_id}", session_id)

    def recall(self, calls: Mapping[str, str]) -> None:
        """Tool-call ids of an earlier gateway, and their sessions."""
        for call_id, session_id in calls.items():
            self._put(f"call:{call_id}", session_id)

    def find(self, body: Peek) -> str | None:
        """The session whose replies this request echoes, or None."""
        for _, key in zip(range(MAX_LOOKUPS), echoes(body), strict=False):
            session_id = self._said.get(key)
            if session_id is not None:
                return session_id
        return None

    def quoted(self, body: Peek) -> str | None:
        """The session of a reply that this request, which offers no tools, quotes as a whole.

        Only a request that begins something: who has said something already is a
        conversation of its own, also where it is about another one.
        """
        turns = [*_list(body.messages), *_list(body.input)]
        if body.offers_tools or any(turn.get("role") == "assistant" for turn in turns):
            return None
        found: set[str | None] = set()
        for turn in turns:
            lines = _text(turn.get("content")).split("\n", MAX_LINES)
            for at, line in enumerate(lines):
                for num_lines in self._lengths.get(first_words(line), ()):
                    text = "\n".join(lines[at : at + num_lines])
                    found.add(self._said.get(f"text:{text_hash(text)}"))
        found.discard(None)
        return found.pop() if len(found) == 1 else None

    def _note(self, first_line: str, num_lines: int) -> None:
        known = self._lengths.setdefault(first_line, [])
        self._lengths.move_to_end(first_line)
        if num_lines not in known:
            known.append(num_lines)
            del known[:-MAX_LENGTHS]
        if len(self._lengths) > self._max_keys:
            self._lengths.popitem(last=False)

    def _put(self, key: str, session_id: str) -> None:
        known = self._said.get(key, session_id)
        self._said[key] = session_id if known == session_id else None
        self._said.move_to_end(key)
        if len(self._said) > self._max_keys:
            self._said.popitem(last=False)


def echoes(body: Peek) -> Iterator[str]:
    """Keys of what a request repeats of earlier replies, the most telling first."""
    if isinstance(body.previous_response_id, str):
        yield f"response:{body.previous_response_id}"
    turns = [*_list(body.messages), *_list(body.input)]
    turns.reverse()
    for turn in turns:
        for call_id in _call_ids(turn):
            yield f"call:{call_id}"
    for turn in turns:
        if turn.get("role") == "assistant":
            text = _text(turn.get("content"))
            if text:
                yield f"text:{text_hash(text)}"
    for call_id in reversed(_MENTIONED.findall(bytes(body.messages))):
        yield f"call:{call_id.decode()}"


def _call_ids(turn: dict[str, Any]) -> Iterator[str]:
    """Ids of tool calls in one message or item of any API."""
    content = turn.get("content")
    found = [turn.get("tool_call_id"), turn.get("call_id")]
    found += [call.get("id") for call in _dicts(turn.get("tool_calls"))]
    for block in _dicts(content):
        if block.get("type") == "tool_result":
            found.append(block.get("tool_use_id"))
        elif block.get("type") == "tool_use":
            found.append(block.get("id"))
    yield from (call_id for call_id in found if isinstance(call_id, str) and call_id)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = (block.get("text") for block in _dicts(content))
    return "".join(part for part in parts if isinstance(part, str))


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _list(raw: msgspec.Raw) -> list[dict[str, Any]]:
    try:
        return _dicts(msgspec.json.decode(raw)) if bytes(raw) else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
