# SPDX-License-Identifier: Apache-2.0
"""Streaming pass-through of ``/v1/*``: bodies untouched, replies byte for byte.

The body is read once and looked at (never changed) to find its session; the session may
be held; then the reply goes through chunk by chunk. When the client goes away, the
engine's connection is closed, which makes vLLM abort the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from mars.config import GatewayConfig
from mars.gateway import identity as ids
from mars.gateway.heartbeat import Heartbeat
from mars.gateway.keyring import Keyring
from mars.gateway.openai import MESSAGES, ApiError, Send, send_error
from mars.gateway.outage import Beat, Outage
from mars.gateway.patience import patience_of
from mars.gateway.turns import Turns, TurnWatch

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

GENERATES = (b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages")
"""Paths that start a turn; everything else passes without a session."""

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-session-id"}
_NOT_SENT_BACK = _HOP_BY_HOP | {b"date", b"server"}  # our own server writes these
_NO_DEFAULTS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
SILENT_SHARE = 0.8
"""Of a client's patience that a silent wait for an engine may take; the reply takes some, too."""
KEEPALIVE_S = 3.0
"""Idle engine connections close before vLLM's server closes them (5 s) under a request."""


class ClientGone(Exception):  # noqa: N818 - not an error of ours
    """The client closed its connection before the request was complete."""


def engine_client(config: GatewayConfig) -> aiohttp.ClientSession:
    """The client towards the engine: no limits of its own, nothing decoded."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_NO_DEFAULTS,
        read_bufsize=2**18,
    )


@dataclass(slots=True)
class Reply:
    """The response to the client: what has been sent of it."""

    send: Send
    path: bytes = b""
    """Of the request, without ``/s/<id>``: says in which envelope errors are told."""
    status: int = 0
    is_stream: bool = False
    is_early: bool = False
    """Begun with heartbeats, before the engine was asked."""

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send status and headers."""
        self.status = status
        self.is_stream = any(
            k.lower() == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers
        )
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, chunk: bytes, *, more: bool = True) -> None:
        """Send part of the body."""
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Send a sign of life; the first one begins the reply, with status 200."""
        if not self.status:
            self.is_early = True
            await self.start(200, [(b"content-type", heartbeat.content_type)])
        await self.body(heartbeat.chunk)

    async def fail(self, error: ApiError) -> None:
        """Send the error; in-band once the reply has begun.

        A reply that breaks off in its middle never gets a clean end.
        """
        if not self.status:
            self.status = error.status
            await send_error(self.send, error, self.path)
        elif self.is_stream:
            event = b"event: error\n" if self.path.startswith(MESSAGES) else b""
            told = b"\n\n" + event + b"data: " + error.body(self.path) + b"\n\n"
            await self.body(told, more=not self.is_early)
        elif self.is_early:
            await self.body(error.body(self.path), more=False)


class Proxy:
    """ASGI endpoint for everything under ``/v1``.

    Args:
        config: engine address and limits.
        turns: sessions of requests, and their events.
        keys: who may send requests, and for whom.
        answered: told the status of every answer, and the tenant where there is one.
    """

    def __init__(
        self,
        config: GatewayConfig,
        turns: Turns,
        keys: Keyring,
        answered: Callable[[int, str | None], None],
    ) -> None:
        self.config = config
        self._turns = turns
        self._keys = keys
        self._answered = answered
        self._outage = Outage()
        self.client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, path_id = ids.split_path(scope["raw_path"])
        reply, tenant = Reply(send, path), None
        try:
            caller = self._keys.caller(scope)
            tenant = caller.tenant
            self._keys.count(caller)
            body = await read_body(scope, receive, self.config.max_body_bytes)
        except ApiError as error:
            await reply.fail(error)
            self._answered(reply.status, tenant)
            return
        except ClientGone:
            return
        serving = asyncio.ensure_future(self._serve(scope, body, reply, path_id, tenant))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not serving.done():  # the client has gone
                serving.cancel()
                await asyncio.wait((serving,))
        if not serving.cancelled() and (defect := serving.exception()) is not None:
            self._answered(500, tenant)
            raise defect
        if reply.status:
            self._answered(reply.status, tenant)

    async def _serve(
        self, scope: Scope, body: bytes, reply: Reply, path_id: str | None, tenant: str
    ) -> None:
        path = reply.path
        headers = {k.decode("latin-1"): _text(v) for k, v in scope["headers"]}
        turn: TurnWatch | None = None
        beat: Beat | None = None
        wait_s = 0.0
        outcome = "abort"
        try:
            if scope["method"] == "POST" and unquote_to_bytes(path) in GENERATES:
                looked_at = _looked_at(body)
                patience = patience_of(
                    headers,
                    path,
                    is_stream=looked_at.stream is True,
                    budget_s=self.config.hold_budget_s,
                )
                beat = partial(reply.beat, patience.heartbeat) if patience.heartbeat else None
                turn = await self._turns.begin(
                    headers, body, looked_at, path_id, beat, tenant, patience
                )
                turn.has_priority = looked_at.priority is not None
                wait_s = self.config.engine_wait_s
                if beat is None:
                    wait_s = min(wait_s, SILENT_SHARE * patience.silent_s)
            await self._relay(scope, path, body, reply, turn, wait_s, beat)
            outcome = "stop"
        except ApiError as error:
            outcome = "error"
            await reply.fail(error)
        finally:
            if turn is not None:
                turn.end(outcome)

    async def _relay(
        self,
        scope: Scope,
        path: bytes,
        body: bytes,
        reply: Reply,
        turn: TurnWatch | None,
        wait_s: float,
        beat: Beat | None,
    ) -> None:
        assert self.client is not None, "the gateway has not been started"
        url = self.config.engine_url.rstrip("/") + path.decode("latin-1")
        if scope["query_string"]:
            url += "?" + scope["query_string"].decode("latin-1")
        ask = partial(
            self.client.request,
            scope["method"],
            URL(url, encoded=True),
            data=body or None,
            headers=self._request_headers(scope, turn),
            allow_redirects=False,
        )
        try:
            response = await self._outage.ask(ask, wait_s, self.config.keepalive_s, beat)
        except aiohttp.ClientError as error:
            raise engine_error(self.config.engine_url, error) from error
        try:
            if not reply.is_early:
                await reply.start(response.status, _response_headers(response))
            elif response.status != HTTPStatus.OK and reply.is_stream:
                await reply.body(b"data: " + await response.read() + b"\n\n")
            if turn is not None:
                turn.answered(response.status, is_stream=reply.is_stream)
            reply.is_early = False  # from here on a failure cannot be told as a whole body
            await _pass_on(response, reply, turn)
        except aiohttp.ClientError as error:
            raise engine_error(self.config.engine_url, error) from error
        finally:
            response.close() if not response.content.at_eof() else response.release()
        if turn is not None:
            await turn.complete()
            await _send_kept(turn, reply)
        await reply.body(b"", more=False)

    def _request_headers(self, scope: Scope, turn: TurnWatch | None) -> CIMultiDict[str]:
        headers = CIMultiDict[str]()
        named = {
            name.strip().lower()
            for key, value in scope["headers"]
            if key == b"connection"
            for name in value.split(b",")
        }
        for key, value in scope["headers"]:
            if key not in _NOT_SENT_ON and key not in named:
                headers.add(key.decode("latin-1"), _text(value))
        if self.config.engine_api_key is not None:
            headers["Authorization"] = f"Bearer {self.config.engine_api_key}"
        if turn is not None:
            headers["X-Session-ID"] = turn.engine_session_id
            if self.config.stamp_priority and not turn.has_priority:
                headers.setdefault("X-Vllm-Priority", str(turn.priority))
        return headers


def _looked_at(body: bytes) -> ids.Peek:
    looked_at = ids.peek(body)
    if looked_at is None:  # an engine with a laxer parser would serve it unseen
        raise ApiError(400, "the request body is not a JSON object in UTF-8")
    return looked_at


async def _pass_on(response: aiohttp.ClientResponse, reply: Reply, turn: TurnWatch | None) -> None:
    """Send the engine's reply on as it comes, but for what is kept back."""
    async for chunk in response.content.iter_any():
        if turn is not None:
            turn.saw(chunk)
            if turn.keeps(chunk):
                continue
            await _send_kept(turn, reply)
        await reply.body(chunk)


async def _send_kept(turn: TurnWatch, reply: Reply) -> None:
    for part in turn.kept():
        await reply.body(part)


def _text(value: bytes) -> str:
    """A header value such that the client, which writes UTF-8, sends the same bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def engine_error(engine_url: str, error: aiohttp.ClientError) -> ApiError:
    """What a failed connection to the engine means to the client."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError):
        return ApiError(
            503,
            f"the engine at {engine_url} cannot be reached ({error}); "
            "start it, or set gateway.engine_url to where it listens",
            headers={"Retry-After": "5"},
        )
    return ApiError(
        502,
        f"the engine at {engine_url} broke the connection ({error or type(error).__name__}); "
        "look into its log, then send the request again",
    )


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises:
        ApiError: 413, larger than ``limit`` bytes.
        ClientGone: the client left in the middle of it.
    """
    for key, value in scope["headers"]:
        if key == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the request body exceeds {limit} bytes; raise gateway.max_body_bytes to allow it"
    )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    return [(k, v) for k, v in response.raw_headers if k.lower() not in _NOT_SENT_BACK]
