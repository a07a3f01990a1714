# SPDX-License-Identifier: Apache-2.0
"""Reads one streamed completion: when its first token came, what the server counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

_SEPARATOR = b"\n\n"
_DATA = b"data:"
_DONE = b"[DONE]"


class ReplyError(Exception):
    """The server ended a reply with an error, or without its last token."""


@dataclass(slots=True)
class Reply:
    """What one completion gave. Times are ``time.monotonic()`` seconds."""

    first_token_at: float | None = None
    ended_at: float | None = None
    num_chunks: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """As the server reports it (``--enable-prompt-tokens-details``), else None."""
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decoder = msgspec.json.Decoder(_Chunk)


async def read_reply(parts: AsyncIterator[bytes]) -> Reply:
    """Consume a server-sent event stream of ``/v1/completions`` to its end.

    Comment lines (keep-alives of a held session) are passed over.

    Raises:
        ReplyError: an error event, a malformed event, or an end before ``[DONE]``.
    """
    reply, buffer, is_done = Reply(), b"", False
    async for part in parts:
        now = time.monotonic()
        *events, buffer = (buffer + part).split(_SEPARATOR)
        for event in events:
            is_done = _take(reply, event, now) or is_done
    if not is_done:
        raise ReplyError(
            f"the stream ended after {reply.num_chunks} chunks, before its last token; "
            "the engine or the gateway went away"
        )
    reply.ended_at = reply.ended_at or time.monotonic()
    return reply


def error_text(body: bytes) -> str:
    """The message of an OpenAI error envelope, or the start of whatever came instead."""
    try:
        tree = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
    error = tree.get("error", tree) if isinstance(tree, dict) else tree
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:400]


def _take(reply: Reply, event: bytes, now: float) -> bool:
    """Count one event in; True if it is the last."""
    event = event.strip()
    if not event.startswith(_DATA):
        return False
    body = event[len(_DATA) :].strip()
    if body == _DONE:
        return True
    try:
        chunk = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ReplyError(f"not a completion chunk: {body[:80]!r} ({error})") from error
    if chunk.error is not None:
        raise ReplyError(error_text(body))
    if chunk.choices:
        reply.num_chunks += 1
        reply.first_token_at = reply.first_token_at or now
        reply.ended_at = now
        reply.finish_reason = chunk.choices[0].finish_reason or reply.finish_reason
    if chunk.usage is not None:
        _count(reply, chunk.usage)
    return False


def _count(reply: Reply, usage: _Usage) -> None:
    reply.prompt_tokens = usage.prompt_tokens
    reply.output_tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        reply.cached_tokens = usage.prompt_tokens_details.cached_tokens
