# SPDX-License-Identifier: Apache-2.0
"""The endpoints under ``/mars/v1``: state, events, ends of sessions, reload and drain.

State, the event stream, reload and drain ask for ``gateway.admin_key`` where there is one.
A client's key may then still report tools of its tenant's sessions, and end them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mars.core import events as ev
from mars.gateway.openai import ApiError
from mars.gateway.proxy import ClientGone, read_body
from mars.gateway.state import state_of
from mars.telemetry.codec import CodecError, Record, encode_json, from_map

if TYPE_CHECKING:
    from mars.gateway.app import Gateway

SSE_HEARTBEAT_S = 15.0
MAX_EVENTS_BODY_BYTES = 8 * 2**20

REPORTED = ev.ToolQueued | ev.ToolStarted | ev.ToolFinished
"""What clients may report of their own sessions."""


class Admin:
    """The endpoints of one gateway.

    Args:
        gateway: whose state is shown and changed.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._keys = gateway.keys

    def routes(self) -> list[Route]:
        """All of them."""
        session = "/mars/v1/sessions/{session_id:path}/end"
        return [
            Route("/mars/v1/state", self.state),
            Route("/mars/v1/events", self.post_events, methods=["POST"]),
            Route("/mars/v1/events", self.stream_events, methods=["GET"]),
            Route("/mars/v1/reload", self.reload, methods=["POST"]),
            Route("/mars/v1/drain", self.drain, methods=["POST", "DELETE"]),
            Route(session, self.end_session, methods=["POST"]),
            Route("/finish_session", self.end_session, methods=["POST"]),
        ]

    async def state(self, request: Request) -> Response:
        """Window, held and active sessions, loads and alarms, as JSON."""
        self._keys.admit_admin(request.scope)
        return json_response(state_of(self._gateway))

    async def post_events(self, request: Request) -> Response:
        """Take a JSON list of events from tool pools and clients; all or none."""
        tenant = self._tenant(request)
        try:
            body = await read_body(request.scope, request.receive, MAX_EVENTS_BODY_BYTES)
            wires = msgspec.json.decode(body, type=list[dict[str, Any]])
            records = [from_map(wire, source="tools") for wire in wires]
        except (msgspec.DecodeError, CodecError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"expected a JSON list of events: {error}") from error
        except ClientGone:
            return Response(status_code=400)
        if tenant is not None:
            for record in records:
                self._check_reporter(record, tenant)
        hub = self._gateway.hub
        for record in records:
            hub.emit(record.event, record.source)
        return json_response({"accepted": len(records), "last_seq": hub.bus.last_seq})

    async def stream_events(self, request: Request) -> Response:
        """Server-sent events after ``since`` (default: from now on)."""
        self._keys.admit_admin(request.scope)
        given = request.query_params.get("since", request.headers.get("last-event-id"))
        if given is not None and not given.isdecimal():
            raise ApiError(400, "since must be a sequence number, 0 or more", param="since")
        return StreamingResponse(
            self._sse(None if given is None else int(given)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _sse(self, since: int | None) -> AsyncIterator[bytes]:
        reader, stopping = self._gateway.hub.bus.reader(since), self._gateway.stopping
        yield b": mars.events/1\n\n"
        while not stopping.is_set():
            for record in reader.read(256):
                yield b"id: %d\ndata: %s\n\n" % (record.seq, encode_json(record))
            done = asyncio.ensure_future(stopping.wait())
            ready = asyncio.ensure_future(reader.wait())
            waited = (done, ready)
            try:
                finished, _ = await asyncio.wait(
                    waited, timeout=SSE_HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for task in waited:
                    task.cancel()
            if not finished:
                yield b": keep-alive\n\n"

    async def end_session(self, request: Request) -> Response:
        """End a session that its client is done with."""
        tenant = self._tenant(request)
        session_id = request.path_params.get("session_id") or request.query_params.get("session_id")
        if not session_id:
            raise ApiError(400, "name the session: ?session_id=...", param="session_id")
        admission = self._gateway.admission
        is_own = tenant is None or admission.tenant_of(session_id) == tenant
        if not is_own or not admission.end(session_id, "explicit"):
            raise ApiError(404, f"no session {session_id!r} is held or active")
        return json_response({"session_id": session_id, "ended": True})

    async def reload(self, request: Request) -> Response:
        """Read the settings anew; tells which changed and which need a restart."""
        self._keys.admit_admin(request.scope)
        try:
            change = self._gateway.reload()
        except ValueError as error:  # ConfigError, and what a policy says of its options
            raise ApiError(400, f"nothing was changed: {error}") from error
        return json_response(change)

    async def drain(self, request: Request) -> Response:
        """POST: no new sessions from now on, those held are sent away; DELETE: take it back.

        Active sessions go on. How many there are is in the answer.
        """
        self._keys.admit_admin(request.scope)
        admission = self._gateway.admission
        if request.method == "DELETE":
            admission.is_draining = False
        else:
            admission.drain()
        return json_response(
            {"is_draining": admission.is_draining, "num_active": len(admission.active)}
        )

    def _tenant(self, request: Request) -> str | None:
        """Whose sessions alone the sender may touch; None: all."""
        if not self._keys.has_admin_key:
            self._keys.caller(request.scope)
            return None
        return (
            None if self._keys.is_admin(request.scope) else self._keys.caller(request.scope).tenant
        )

    def _check_reporter(self, record: Record, tenant: str) -> None:
        event = record.event
        if not isinstance(event, REPORTED):
            raise ApiError(403, f"{event.kind} events ask for gateway.admin_key")
        if self._gateway.admission.tenant_of(event.session_id) not in {None, tenant}:
            raise ApiError(403, f"session {event.session_id!r} is another tenant's")


def json_response(content: Any) -> Response:
    """200 with JSON."""
    return Response(msgspec.json.encode(content), media_type="application/json")
