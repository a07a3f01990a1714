# SPDX-License-Identifier: Apache-2.0
import time
from collections.abc import AsyncIterator

import pytest

from mars.bench.stream import Reply, ReplyError, error_text, read_reply

TOKEN = b'data: {"id":"c","choices":[{"index":0,"text":"a","finish_reason":null}],"usage":null}\n\n'
LAST = b'data: {"id":"c","choices":[{"index":0,"text":"b","finish_reason":"length"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


async def _parts(stream: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


async def _read(stream: bytes, size: int = 10**6) -> Reply:
    return await read_reply(_parts(stream, size))


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
async def test_counts_do_not_depend_on_how_the_stream_is_cut(size: int) -> None:
    reply = await _read(TOKEN + LAST + USAGE + DONE, size)
    assert (reply.num_chunks, reply.finish_reason) == (2, "length")
    assert (reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == (9, 2, 4)


async def test_a_keep_alive_is_not_the_first_token() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b": keep-alive\n\n"
        nonlocal before
        before = time.monotonic()
        yield TOKEN + DONE

    before = 0.0
    reply = await read_reply(parts())
    assert reply.first_token_at is not None
    assert reply.first_token_at >= before > 0


async def test_an_end_without_done_is_an_error() -> None:
    with pytest.raises(ReplyError, match="after 1 chunks"):
        await _read(TOKEN)


async def test_an_error_event_carries_the_servers_message() -> None:
    with pytest.raises(ReplyError, match="engine died"):
        await _read(TOKEN + b'data: {"error":{"message":"engine died","code":500}}\n\n' + DONE)


async def test_a_malformed_event_is_an_error() -> None:
    with pytest.raises(ReplyError, match="not a completion chunk"):
        await _read(b"data: {oops\n\n" + DONE)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"no such model"}}', "no such model"),
        (b'{"message":"late"}', "late"),
        (b"<html>", "<html>"),
        (b'["x"]', "['x']"),
    ],
)
def test_error_text_finds_the_message(body: bytes, text: str) -> None:
    assert error_text(body) == text
