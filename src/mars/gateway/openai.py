# SPDX-License-Identifier: Apache-2.0
"""Errors in OpenAI's envelope, as vLLM writes them: ``{"error": {message, type, ...}}``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    502: "engine_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An answer to one client other than success; the message names cause and fix."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The envelope; ``code`` is the HTTP status, as in vLLM."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "api_error"),
            "param": self.param,
            "code": self.status,
        }
        return msgspec.json.encode({"error": error})


def retry_later(message: str, retry_after_s: int) -> ApiError:
    """503 that asks to come back; agents give up above 30 s (CLIENTS section 2)."""
    return ApiError(503, message, headers={"Retry-After": str(min(30, retry_after_s))})


async def send_error(send: Send, error: ApiError) -> None:
    """Send the error as a whole response."""
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
