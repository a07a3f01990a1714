# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mars.gateway.replies import CalledTool, ReplyReader, text_hash

TEXT = "Let me look. é"
TOOL = CalledTool("call-1", "bash")


def sse(*parts: Any) -> bytes:
    events = [b"event: x\ndata: " + msgspec.json.encode(part) + b"\n\n" for part in parts]
    return b"".join(events) + b"data: [DONE]\n\n"


CHAT_CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "bash"}}
CHAT_MORE = {"index": 0, "function": {"arguments": "{}"}}
ITEM = {"type": "function_call", "call_id": "call-1", "id": "fc_1", "name": "bash"}
BLOCK = {"type": "tool_use", "id": "call-1", "name": "bash", "input": {}}
REPLIES: dict[str, tuple[bool, bytes]] = {
    "chat streamed": (
        True,
        sse(
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": TEXT[:5]}}]},
            {"choices": [{"delta": {"content": TEXT[5:]}}]},
            {"choices": [{"delta": {"tool_calls": [CHAT_CALL]}}]},
            {"choices": [{"delta": {"tool_calls": [CHAT_MORE]}}]},
            {"choices": [], "usage": {"prompt_tokens": 1}},
        ),
    ),
    "chat whole": (
        False,
        msgspec.json.encode(
            {"choices": [{"message": {"content": TEXT, "tool_calls": [CHAT_CALL]}}]}
        ),
    ),
    "responses streamed": (
        True,
        sse(
            {"type": "response.created", "response": {"id": "resp_1"}},
            {"type": "response.output_text.delta", "delta": TEXT},
            {"type": "response.output_item.added", "item": ITEM | {"name": ""}},
            {"type": "response.output_item.done", "item": ITEM},
            {"type": "response.completed", "response": {"id": "resp_1", "output": [ITEM]}},
        ),
    ),
    "responses whole": (
        False,
        msgspec.json.encode(
            {
                "object": "response",
                "id": "resp_1",
                "output": [
                    {"type": "message", "content": [{"type": "output_text", "text": TEXT}]},
                    ITEM,
                ],
            }
        ),
    ),
    "messages streamed": (
        True,
        sse(
            {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": TEXT}},
            {"type": "content_block_start", "content_block": BLOCK},
            {
                "type": "content_block_delta",
                "delta": {"type": "input_json_delta", "partial_json": "{}"},
            },
        ),
    ),
    "messages whole": (
        False,
        msgspec.json.encode(
            {"type": "message", "content": [{"type": "text", "text": TEXT}, BLOCK]}
        ),
    ),
}


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_tool_calls_and_text_are_found_in_every_api_however_it_is_cut(name: str, size: int) -> None:
    is_stream, body = REPLIES[name]
    reader = ReplyReader(is_stream)
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    reader.finish()
    assert reader.tools == [TOOL]
    assert reader.text_hash == text_hash(TEXT)
    assert reader.response_id == ("resp_1" if name.startswith("responses") else None)
    assert not reader._text  # nothing of the text is kept


def test_a_completion_has_text_only() -> None:
    reader = ReplyReader(is_stream=False)
    reader.feed(b'{"choices": [{"text": " a b "}]}')
    reader.finish()
    assert (reader.tools, reader.text_hash) == ([], text_hash("a b"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[1, 2]",
        b'{"choices": 3, "output": "x", "content": {}}',
        b'{"choices": [{"message": "x"}, 5, {"message": {"tool_calls": [{"id": 3}]}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"id": "", "function": null}]}}]}',
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
def test_what_makes_no_sense_says_nothing(body: bytes, is_stream: bool) -> None:
    reader = ReplyReader(is_stream)
    reader.feed(b"data: " + body + b"\n\n" if is_stream else body)
    reader.finish()
    assert (reader.tools, reader.text_hash) == ([], None)


def test_an_endless_line_is_not_collected() -> None:
    reader = ReplyReader(is_stream=True)
    for _ in range(40):
        reader.feed(b"x" * 100_000)
    assert len(reader._rest) <= 2**20


def test_a_call_that_ends_the_task_runs_nothing() -> None:
    reader = ReplyReader(is_stream=False)
    calls = [{"id": i, "function": {"name": name}} for i, name in (("a", "bash"), ("b", "finish"))]
    reader.feed(msgspec.json.encode({"choices": [{"message": {"tool_calls": calls}}]}))
    reader.finish()
    assert [tool.tool_name for tool in reader.tools] == ["bash", "finish"]
    assert [tool.tool_name for tool in reader.running_tools] == ["bash"]


@pytest.mark.parametrize(
    "last",
    [b"data: [DONE]\n\n", sse({"type": "response.completed"}), sse({"type": "message_stop"})],
)
def test_the_last_event_of_each_api_is_known(last: bytes) -> None:
    reader = ReplyReader(is_stream=True)
    reader.feed(b'data: {"choices":[]}\n\n')
    assert not reader.is_over
    reader.feed(last)
    assert reader.is_over
