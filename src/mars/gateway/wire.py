# SPDX-License-Identifier: Apache-2.0
"""Limits below HTTP: heads that are too large or malformed, answered in the envelope.

uvicorn's protocols parse heads without a bound (httptools) or answer in plain text; these
bound what a connection may make the gateway remember before a request exists.
"""

from __future__ import annotations

import importlib.util
from asyncio import Protocol
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from mars.gateway.openai import ApiError, send_error

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Limit = Callable[[], int]
"""Bytes allowed for request line and headers now; a reload may change it."""

MALFORMED = ApiError(400, "this is not an HTTP request")


def too_large(limit: int) -> ApiError:
    """431, naming the setting."""
    return ApiError(
        431,
        f"request line and headers exceed {limit} bytes; raise gateway.max_header_bytes to "
        "allow it",
    )


class HeadLimit:
    """ASGI middleware: refuses a request whose head is complete and too large.

    Args:
        app: what serves the others.
        limit: bytes.
    """

    def __init__(self, app: App, limit: Limit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = len(scope["raw_path"]) + len(scope["query_string"])
            for name, value in scope["headers"]:
                size += len(name) + len(value)
            if size > self._limit():
                await send_error(send, too_large(self._limit()), scope["raw_path"])
                return
        await self._app(scope, receive, send)


def whole_response(error: ApiError) -> bytes:
    """An error as the bytes of a response that ends the connection."""
    body = error.body()
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def protocol_with(limit: Limit) -> type[Protocol]:
    """uvicorn's protocol with these limits: on httptools where that is installed, else h11."""
    return _on_httptools(limit) if importlib.util.find_spec("httptools") else on_h11(limit)


def _on_httptools(limit: Limit) -> type[Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class LimitedHttpTools(HttpToolsProtocol):
        _is_in_head = True
        _num_head_bytes = 0
        _num_chunk_bytes = 0
        """Of what came last, without bodies."""

        def data_received(self, data: bytes) -> None:
            self._num_chunk_bytes = len(data)
            self._num_head_bytes += len(data)
            super().data_received(data)
            if self._is_in_head and self._num_head_bytes > limit():
                self._refuse(too_large(limit()))

        def on_message_begin(self) -> None:
            self._is_in_head = True
            self._num_head_bytes = self._num_chunk_bytes
            super().on_message_begin()

        def on_body(self, body: bytes) -> None:
            self._num_chunk_bytes -= len(body)
            super().on_body(body)

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(MALFORMED)

        def _refuse(self, error: ApiError) -> None:
            if not self.transport.is_closing():
                self.transport.write(whole_response(error))
                self.transport.close()

    return LimitedHttpTools


def on_h11(limit: Limit) -> type[Protocol]:
    """The same on h11, uvicorn's parser in pure Python, which bounds heads itself."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedH11(H11Protocol):
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            config.h11_max_incomplete_event_size = limit()
            super().__init__(config, *arguments, **options)

        def send_400_response(self, msg: str) -> None:
            is_large = len(self.conn.trailing_data[0]) > limit()
            self.transport.write(whole_response(too_large(limit()) if is_large else MALFORMED))
            self.transport.close()

    return LimitedH11
