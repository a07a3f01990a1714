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
_IN_PROGRESS = (
    b"event: response.in_progress\n"
    b'data: {"type":"response.in_progress","sequence_number":0,"response":'
    b'{"id":"resp_held","object":"response","status":"in_progress","output":[]}}\n\n'
)


@dataclass(slots=True, frozen=True)
class Heartbeat:
    """Content type of the reply, and what is sent again and again before it."""

    content_type: bytes
    chunk: bytes


_COMMENT = Heartbeat(_SSE, b": keep-alive\n\n")
_EVENT = Heartbeat(_SSE, _IN_PROGRESS)
_SPACE = Heartbeat(b"application/json", b" \n")


def heartbeat_of(path: bytes, *, is_stream: bool, is_codex: bool = False) -> Heartbeat | None:
    """The heartbeat of an API, or None where its clients bear none.

    Codex waits for events, and takes those of a response that never comes; the openai
    package takes comments, and no event of a response but the one it gets in the end.
    """
    if path == b"/v1/messages":
        return None
    if not is_stream:
        return _SPACE
    return _EVENT if path == b"/v1/responses" and is_codex else _COMMENT
