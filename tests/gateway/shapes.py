# SPDX-License-Identifier: Apache-2.0
"""An engine that answers each API in its own shape, word for word as vLLM 0.32 does."""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
CALL = {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": '{"a": 1}'}}


def chat(**choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop"} | choice],
        "usage": USAGE,
    }


def message(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind} | more


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "héllo", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "héllo"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 2},
}

WHOLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(
        message={"role": "assistant", "content": "héllo", "tool_calls": [CALL]}
    ),
    "/v1/completions": chat(text="héllo", logprobs=None) | {"object": "text_completion"},
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
    "/v1/messages/count_tokens": {"input_tokens": 7},
    "/v1/embeddings": {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    "/v1/models": {
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "vllm"}],
    },
}

STREAMED: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        chat(delta={"role": "assistant", "content": text}, finish_reason=None)
        | {"object": "chat.completion.chunk"}
        for text in ("hé", "llo")
    ],
    "/v1/completions": [
        chat(text=text, finish_reason=None) | {"object": "text_completion"}
        for text in ("hé", "llo")
    ],
    "/v1/responses": [
        message("response.created", sequence_number=0, response=RESPONSE | {"output": []}),
        message(
            "response.output_text.delta",
            sequence_number=1,
            item_id="msg_1",
            output_index=0,
            content_index=0,
            delta="héllo",
            logprobs=[],
        ),
        message("response.completed", sequence_number=2, response=RESPONSE),
    ],
    "/v1/messages": [
        message("message_start", message=MESSAGE | {"content": [], "stop_reason": None}),
        message("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        message("content_block_delta", index=0, delta={"type": "text_delta", "text": "héllo"}),
        message("content_block_stop", index=0),
        message("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        message("message_stop"),
    ],
}


class ShapedEngine:
    """Keeps every request as it came: (path, headers without the host, body)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", lambda request: Response()),
                Route("/{path:path}", self.answer, methods=["GET", "POST"]),
            ]
        )

    async def answer(self, request: Request) -> Response:
        path, body = request.url.path, await request.body()
        if path == "/metrics" or path not in WHOLE:
            return Response(status_code=404)
        self.seen.append((path, dict(request.headers), body))
        if body and json.loads(body).get("stream"):
            return StreamingResponse(events(path), media_type="text/event-stream")
        return Response(
            json.dumps(WHOLE[path], ensure_ascii=False).encode(), media_type="application/json"
        )


async def events(path: str) -> Any:
    """Server-sent events, cut where no event ends."""
    told = b""
    for event in STREAMED[path]:
        name = f"event: {event['type']}\n" if "type" in event else ""
        told += f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
    if "completions" in path:
        told += b"data: [DONE]\n\n"
    for start in range(0, len(told), 37):
        yield told[start : start + 37]
