# SPDX-License-Identifier: Apache-2.0
"""Errors in OpenAI's envelope, as vLLM writes them: ``{"error": {message, type, ...}}``.

Clients of ``/v1/messages`` get Anthropic's: ``{"type": "error", "error": {type, message}}``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_RETRY_S = 30
"""Longest time to ask a client to wait: agents give up above it (CLIENTS section 2)."""
MESSAGES = b"/v1/messages"
"""Paths that begin so speak Anthropic's API."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "method_not_allowed",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "request_too_large",
    502: "engine_error",
    503: "service_unavailable",
}
_ANTHROPIC_TYPES = {
    **{status: _TYPES[status] for status in (400, 401, 403, 404, 413, 429)},
    409: "invalid_request_error",
    431: "request_too_large",
    503: "overloaded_error",
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

    def body(self, path: bytes = b"") -> bytes:
        """The envelope that clients of ``path`` read; ``code`` is the status, as in vLLM."""
        if path.startswith(MESSAGES):
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
            told = {"type": kind, "message": self.message}
            return msgspec.json.encode({"type": "error", "error": told})
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "api_error"),
            "param": self.param,
            "code": self.status,
        }
        return msgspec.json.encode({"error": error})


def retry_later(message: str, retry_after_s: int) -> ApiError:
    """503 that asks to come back."""
    return ApiError(503, message, headers={"Retry-After": str(min(MAX_RETRY_S, retry_after_s))})


async def send_error(send: Send, error: ApiError, path: bytes = b"") -> None:
    """Send the error as a whole response."""
    body = error.body(path)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
