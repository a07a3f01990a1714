# SPDX-License-Identifier: Apache-2.0
"""Signs of life while a session is held, in the form that each API's clients bear.

From CLIENTS sections 1.5, 2 and 7: server-sent comments for chat and completion streams,
``response.in_progress`` events for responses, leading JSON white space where the reply is
not streamed. Nothing moves the limit of Anthropic clients, which get no heartbeat and a
hold budget instead. A heartbeat commits status 200: later errors are told in-band.
"""

from __future__ import annotations

from dataclasses import dataclass

_SSE = b"text/event-stream; charset=utf-8"
_HELD = (
    b'"sequence_number":0,"response":{"id":"resp_held","object":"response","created_at":0,'
    b'"status":"in_progress","model":"","output":[],"tools":[],"tool_choice":"auto",'
    b'"parallel_tool_calls":true}}\n\n'
)
_CREATED = b'event: response.created\ndata: {"type":"response.created",' + _HELD
_IN_PROGRESS = b'event: response.in_progress\ndata: {"type":"response.in_progress",' + _HELD


@dataclass(slots=True, frozen=True)
class Heartbeat:
    """Content type of the reply, what is sent again and again before it, and what comes
    before all that."""

    content_type: bytes
    chunk: bytes
    first: bytes = b""
    """The openai package takes no other event of a response before this one."""


_COMMENT = Heartbeat(_SSE, b": keep-alive\n\n")
_EVENT = Heartbeat(_SSE, _IN_PROGRESS, _CREATED)
_SPACE = Heartbeat(b"application/json", b" \n")


def heartbeat_of(path: bytes, *, is_stream: bool) -> Heartbeat | None:
    """The heartbeat of an API, or None where its clients bear none."""
    if path == b"/v1/messages":
        return None
    if not is_stream:
        return _SPACE
    return _EVENT if path == b"/v1/responses" else _COMMENT
