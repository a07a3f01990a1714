# SPDX-License-Identifier: Apache-2.0
"""A small engine for tests and benchmarks: OpenAI replies at a set pace, no model.

Streams numbered words as ``data:`` lines, remembers what it was sent, and notices when
a client goes away. ``pause()`` stops all replies before their next token, which lets a
test look at the middle of a stream without waiting for time to pass. A request may script
its own reply: ``fake_text``, and ``fake_tools`` as ``[{"id": ..., "name": ...}]`` (chat).
With endpoints, it reports its turns and load as vLLM's plug-in does. Run as a process::

    python -m mars.testing.engine --port 18301 --num-tokens 32 --token-interval-s 0.01
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import operator
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mars.testing.reports import EngineReports

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class SeenRequest:
    """One request as it arrived."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def session_id(self) -> str | None:
        """What ``X-Session-ID`` said."""
        return self.headers.get("x-session-id")


@dataclass(slots=True)
class FakeEngine:
    """State of the engine; ``app`` makes its server.

    ``kv_usage`` (0..1) and ``lacking`` (metric names left out) shape ``/metrics``.
    """

    num_tokens: int = 8
    token_interval_s: float = 0.0
    is_healthy: bool = True
    kv_usage: float = 0.0
    lacking: frozenset[str] = frozenset()
    break_after: int | None = None
    """Break the connection of every reply after so many tokens."""
    seen: list[SeenRequest] = field(default_factory=list[SeenRequest])
    cancelled: list[SeenRequest] = field(default_factory=list[SeenRequest])
    finished: list[SeenRequest] = field(default_factory=list[SeenRequest])
    reports: EngineReports | None = None
    """Tells of turns over ZMQ, as the plug-in does."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _running: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._running.set()

    def pause(self) -> None:
        """Stop all replies before their next token."""
        self._running.clear()

    def resume(self) -> None:
        """Let them go on."""
        self._running.set()

    async def until(self, condition: Callable[[FakeEngine], bool]) -> None:
        """Return when ``condition`` holds; asked after each request, end and cancellation."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    def app(self) -> Starlette:
        """The engine's server."""
        generate = _Generate(self)
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", generate, methods=["POST"]),
                Route("/v1/completions", generate, methods=["POST"]),
                Route("/v1/responses", generate, methods=["POST"]),
                Route("/v1/messages", generate, methods=["POST"]),
                Route("/v1/embeddings", generate, methods=["POST"]),
                Route("/fake/state", self._state),
                Route("/fake/burst", self._burst, methods=["POST"]),
            ]
        )

    async def note(self, where: list[SeenRequest], request: SeenRequest) -> None:
        """Remember a request and wake who waits for it."""
        async with self._changed:
            where.append(request)
            self._changed.notify_all()

    async def pace(self) -> None:
        """Wait for the next token's time."""
        await asyncio.sleep(self.token_interval_s)
        await self._running.wait()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.is_healthy else 503)

    async def _models(self, request: Request) -> Response:
        models = {"object": "list", "data": [{"id": "fake-model", "object": "model"}]}
        return Response(msgspec.json.encode(models), media_type="application/json")

    async def _state(self, request: Request) -> Response:
        """What happened so far, for tests that run this as a process."""
        state = {
            "seen": [r.session_id for r in self.seen],
            "num_finished": len(self.finished),
            "num_cancelled": len(self.cancelled),
            "commands": self.reports.commands if self.reports else [],
        }
        return Response(msgspec.json.encode(state), media_type="application/json")

    async def _burst(self, request: Request) -> Response:
        """Publish ``?count=N`` events at once."""
        if self.reports is not None:
            self.reports.burst(int(request.query_params["count"]))
        return Response()

    async def _metrics(self, request: Request) -> Response:
        running = len(self.seen) - len(self.finished) - len(self.cancelled)
        values = {
            'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"}': 1.0,
            'vllm:kv_cache_usage_perc{engine="0"}': self.kv_usage,
            'vllm:num_requests_running{engine="0"}': running,
            'vllm:num_requests_waiting{engine="0"}': 0.0,
            'vllm:num_preemptions_total{engine="0"}': 0.0,
        }
        lines = [
            f"{name} {value}\n"
            for name, value in values.items()
            if name.partition("{")[0] not in self.lacking
        ]
        return Response("".join(lines), media_type="text/plain; version=0.0.4")


class _Generate:
    """ASGI endpoint of all generating routes."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        seen = SeenRequest(
            scope["path"],
            scope["query_string"].decode(),
            {k.decode(): v.decode("latin-1") for k, v in scope["headers"]},
            body,
        )
        await self._engine.note(self._engine.seen, seen)
        reports = self._engine.reports
        request_id = reports.submitted(seen.session_id, len(body)) if reports else ""
        try:
            wanted = msgspec.json.decode(body, type=dict[str, Any])
            operator.index(wanted.get("max_tokens", 0))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
            error = {"error": {"message": "not JSON", "type": "BadRequestError", "code": 400}}
            response = Response(msgspec.json.encode(error), 400, media_type="application/json")
            await response(scope, receive, send)
            if reports:
                reports.finished(request_id, 0, "error")
            return
        replying = asyncio.ensure_future(self._reply(wanted, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        await asyncio.wait((replying, leaving), return_when=asyncio.FIRST_COMPLETED)
        is_done = replying.done()
        for task in (replying, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        engine = self._engine
        if reports:
            num_tokens = wanted.get("max_tokens", engine.num_tokens)
            reports.finished(request_id, num_tokens, "stop" if is_done else "abort")
        await engine.note(engine.finished if is_done else engine.cancelled, seen)

    async def _reply(self, wanted: dict[str, Any], send: Send) -> None:
        num_tokens = wanted.get("max_tokens", self._engine.num_tokens)
        if wanted.get("stream"):
            await self._stream(wanted, num_tokens, send)
            return
        for _ in range(num_tokens):
            await self._engine.pace()
        text = wanted.get("fake_text", "".join(f"word{i} " for i in range(num_tokens)))
        message = {"role": "assistant", "content": text, "tool_calls": _tool_calls(wanted)}
        content = {
            "id": "cmpl-fake",
            "choices": [{"index": 0, "text": text, "message": message}],
            "usage": {"prompt_tokens": 7, "completion_tokens": num_tokens},
        }
        await _start(send, b"application/json")
        await send({"type": "http.response.body", "body": msgspec.json.encode(content)})

    async def _stream(self, wanted: dict[str, Any], num_tokens: int, send: Send) -> None:
        await _start(send, b"text/event-stream; charset=utf-8")
        for i in range(num_tokens):
            await self._engine.pace()
            if i == self._engine.break_after:
                return  # uvicorn closes the connection in the middle of the body
            text = wanted.get("fake_text") if i == 0 else ""
            await _delta(send, {"content": f"é{i} " if "fake_text" not in wanted else text})
        if tool_calls := _tool_calls(wanted):
            await _delta(send, {"tool_calls": tool_calls})
        usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": num_tokens}}
        last = b"data: " + msgspec.json.encode(usage) + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last})


def _tool_calls(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Tool calls in the form of chat completions."""
    return [
        {
            "index": index,
            "id": tool["id"],
            "type": "function",
            "function": {"name": tool["name"], "arguments": "{}"},
        }
        for index, tool in enumerate(wanted.get("fake_tools", []))
    ]


async def _delta(send: Send, delta: dict[str, Any]) -> None:
    part = {"id": "cmpl-fake", "choices": [{"index": 0, "delta": delta}]}
    line = b"data: " + msgspec.json.encode(part) + b"\n\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})


async def _start(send: Send, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"x-engine", b"fake")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def serve(app: Starlette, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve any app on a real socket in this event loop; yields its URL."""
    sock = socket.create_server((host, port), backlog=1024)
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[sock]))  # the socket listens already
    try:
        yield f"http://{host}:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
        sock.close()


def main() -> None:
    """Run the engine as a process."""
    parser = argparse.ArgumentParser(description="a fake engine for tests and benchmarks")
    parser.add_argument("--port", type=int, default=18301)
    parser.add_argument("--num-tokens", type=int, default=8)
    parser.add_argument("--token-interval-s", type=float, default=0.0)
    parser.add_argument("--events-endpoint")
    parser.add_argument("--control-endpoint")
    parser.add_argument("--rank", type=int, default=0)
    options = parser.parse_args()
    engine = FakeEngine(options.num_tokens, options.token_interval_s)
    if options.events_endpoint:
        engine.reports = EngineReports(
            options.events_endpoint, options.control_endpoint, options.rank
        )
    uvicorn.run(engine.app(), host="127.0.0.1", port=options.port, log_level="warning", ws="none")


if __name__ == "__main__":
    main()
