# SPDX-License-Identifier: Apache-2.0
"""The gateway as a value: a Starlette app over hub, admission, load and proxy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mars.config import MarsConfig
from mars.core.policy import AdmissionPolicy, admission_policies
from mars.gateway.admission import Admission
from mars.gateway.hub import Hub
from mars.gateway.load import LoadBoard
from mars.gateway.metrics import GatewayMetrics
from mars.gateway.openai import ApiError
from mars.gateway.proxy import Proxy, check_key, engine_client, engine_error
from mars.gateway.restore import session_of
from mars.gateway.samplers import HostSampler, TelemetryError, scrape
from mars.gateway.state import state_of
from mars.gateway.turns import Turns
from mars.telemetry.codec import CodecError, encode_json, from_map

HOST_INTERVAL_S = 0.5
SCRAPE_INTERVAL_S = 0.5
"""Both well below the age at which telemetry counts as stale (2 s by default)."""
FORGET_INTERVAL_S = 60.0
SSE_HEARTBEAT_S = 15.0
MAX_EVENTS_BODY_BYTES = 8 * 2**20

_log = structlog.get_logger("mars.gateway")


class Gateway:
    """One control plane: its parts, their tasks, and its own endpoints.

    Args:
        config: all settings.
        policy: an admission policy, in place of the configured one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: MarsConfig,
        policy: AdmissionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config.gateway
        self.clock = clock
        self.policy = policy or admission_policies.create(
            self.config.admission, **self.config.admission_options
        )
        self.hub = Hub(config.telemetry, clock)
        self.board = LoadBoard(
            self.config.telemetry_stale_s, lambda: self.admission.num_held, config.tools.slots
        )
        self.admission = Admission(
            self.policy,
            self.config,
            load=self.board.load,
            is_stale=self.board.is_stale,
            emit=self.hub.emit,
            clock=clock,
            observe=self._policy_took,
        )
        self.turns = Turns(self.admission, self.hub, self.board, clock)
        self.metrics = GatewayMetrics(self.hub, self.admission, self.board, clock)
        self.proxy = Proxy(self.config, self.turns, self.metrics.answered)
        self.hub.listeners += [self.board.apply, self.turns.apply, self.metrics.apply]
        self.stopping = asyncio.Event()
        for view in self.hub.fold.sessions.values():
            if view.admitted_at is not None or view.held_since is not None:
                num_tokens = view.first_prompt_tokens
                session = session_of(view, clock())
                self.admission.restore(session, view.held_since, num_tokens)
        self._host = HostSampler(self._tools)
        self._alarms: list[str] = []

    def _policy_took(self, question: str, seconds: float) -> None:
        self.metrics.policy_took(question, seconds)

    def _tools(self) -> tuple[int, int, int, float]:
        """Tools known from posted events: slots, running, queued, delay of the oldest (s)."""
        calls = [c for s in self.hub.fold.sessions.values() for c in s.open_tools.values()]
        waiting = [c.queued_at for c in calls if c.started_at is None]
        delay_s = self.clock() - min(waiting) if waiting else 0.0
        slots = self.board.load(self.clock()).tool_slots or 0
        return slots, len(calls) - len(waiting), len(waiting), max(0.0, delay_s)

    # --- life ------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the parts with the server, stop them with it."""
        self.hub.start()
        self.proxy.client = engine_client(self.config)
        tasks = [
            asyncio.create_task(self._every(self.config.control_interval_s, self._tick)),
            asyncio.create_task(self._every(HOST_INTERVAL_S, self._sample_host)),
            asyncio.create_task(self._every(FORGET_INTERVAL_S, self._forget_strangers)),
            asyncio.create_task(self._learn_model_name()),
        ]
        if not self.hub.has_engine_events:
            tasks.append(asyncio.create_task(self._scrape_engine()))
        try:
            yield
        finally:
            self.drain()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.proxy.client.close()
            await self.hub.stop()

    def drain(self) -> None:
        """Turn held sessions away and end event streams; turns in flight finish."""
        self.admission.drain()
        self.stopping.set()

    async def _every(self, interval_s: float, step: Callable[[], None]) -> None:
        while True:
            step()
            await asyncio.sleep(interval_s)

    def _tick(self) -> None:
        self.admission.tick()
        alarms = self.board.alarms(self.clock())
        for alarm in alarms:
            if not self._alarms:
                _log.warning("telemetry alarm", alarm=alarm)
        if self._alarms and not alarms:
            _log.info("telemetry is back")
        self._alarms = alarms

    def _forget_strangers(self) -> None:
        """Sessions known from engine or tools only have nobody who ends them."""
        known, limit = self.admission, self.clock() - self.config.idle_session_s
        self.hub.fold.forget(
            lambda view: view.phase_since < limit and not known.knows(view.session_id)
        )

    def _sample_host(self) -> None:
        now = self.clock()
        if not self.board.has_pool(now):
            self.hub.emit(self._host.sample(now))

    async def _scrape_engine(self) -> None:
        assert self.proxy.client is not None
        url = self.config.engine_url.rstrip("/")
        while True:
            try:
                self.board.engine_sampled(await scrape(self.proxy.client, url, self.clock()))
            except TelemetryError as error:
                self.board.fault = str(error)
            await asyncio.sleep(SCRAPE_INTERVAL_S)

    async def _learn_model_name(self) -> None:
        """Ask the engine, until it answers, which model it serves (a metrics label)."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
                _, body = await self._ask("/v1/models")
                models = msgspec.json.decode(body, type=dict[str, Any]).get("data")
                if isinstance(models, list) and models:
                    self.metrics.model_name = str(models[0].get("id", "unknown"))
                    return
            await asyncio.sleep(2.0)

    async def _ask(self, path: str) -> tuple[int, bytes]:
        assert self.proxy.client is not None
        headers = {}
        if self.config.engine_api_key is not None:
            headers["Authorization"] = f"Bearer {self.config.engine_api_key}"
        url = self.config.engine_url.rstrip("/") + path
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with self.proxy.client.get(url, headers=headers, timeout=timeout) as response:
            return response.status, await response.read()

    # --- endpoints -------------------------------------------------------------------
    async def health(self, request: Request) -> Response:
        """200 when the engine answers and is healthy; 503 with the cause otherwise."""
        if self.admission.is_draining:
            return _error(ApiError(503, "the gateway is shutting down"))
        try:
            status, _ = await self._ask("/health")
        except aiohttp.ClientError as error:
            return _error(engine_error(self.config.engine_url, error))
        except TimeoutError:
            return _error(ApiError(503, f"the engine at {self.config.engine_url} does not answer"))
        if status != 200:
            message = f"the engine at {self.config.engine_url} answers /health with {status}"
            return _error(ApiError(503, message))
        return Response(status_code=200)

    async def render_metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

    async def state(self, request: Request) -> Response:
        """Window, held and active sessions, loads and alarms, as JSON."""
        self._authorize(request)
        return _json(state_of(self))

    async def post_events(self, request: Request) -> Response:
        """Take a JSON list of events from tool pools and clients; all or none."""
        self._authorize(request)
        body = await request.body()
        if len(body) > MAX_EVENTS_BODY_BYTES:
            raise ApiError(413, f"at most {MAX_EVENTS_BODY_BYTES} bytes of events at once")
        try:
            wires = msgspec.json.decode(body, type=list[dict[str, Any]])
            records = [from_map(wire, source="tools") for wire in wires]
        except (msgspec.DecodeError, CodecError) as error:
            raise ApiError(400, f"expected a JSON list of events: {error}") from error
        for record in records:
            self.hub.emit(record.event, record.source)
        return _json({"accepted": len(records), "last_seq": self.hub.bus.last_seq})

    async def stream_events(self, request: Request) -> Response:
        """Server-sent events after ``since`` (default: from now on)."""
        self._authorize(request)
        given = request.query_params.get("since", request.headers.get("last-event-id"))
        if given is not None and not given.isdigit():
            raise ApiError(400, "since must be a sequence number, 0 or more", param="since")
        return StreamingResponse(
            self._sse(None if given is None else int(given)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _sse(self, since: int | None) -> AsyncIterator[bytes]:
        reader = self.hub.bus.reader(since)
        yield b": mars.events/1\n\n"
        while not self.stopping.is_set():
            for record in reader.read(256):
                yield b"id: %d\ndata: %s\n\n" % (record.seq, encode_json(record))
            done = asyncio.ensure_future(self.stopping.wait())
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
        self._authorize(request)
        session_id = request.path_params.get("session_id") or request.query_params.get("session_id")
        if not session_id:
            raise ApiError(400, "name the session: ?session_id=...", param="session_id")
        if not self.admission.end(session_id, "explicit"):
            raise ApiError(404, f"no session {session_id!r} is held or active")
        return _json({"session_id": session_id, "ended": True})

    def _authorize(self, request: Request) -> None:
        check_key(self.config.api_key, request.scope)


def build_app(
    config: MarsConfig,
    policy: AdmissionPolicy | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The gateway as an ASGI app; its :class:`Gateway` is ``app.state.gateway``.

    Raises:
        UnknownPolicyError: no admission policy of the configured name.
        LogError: the event log cannot be written.
    """
    gateway = Gateway(config, policy, clock)
    routes = [
        Route("/v1/{rest:path}", gateway.proxy),
        Route("/s/{session}/v1/{rest:path}", gateway.proxy),
        Route("/health", gateway.health),
        Route("/metrics", gateway.render_metrics),
        Route("/mars/v1/state", gateway.state),
        Route("/mars/v1/events", gateway.post_events, methods=["POST"]),
        Route("/mars/v1/events", gateway.stream_events, methods=["GET"]),
        Route("/mars/v1/sessions/{session_id:path}/end", gateway.end_session, methods=["POST"]),
        Route("/finish_session", gateway.end_session, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes, lifespan=gateway.lifespan, exception_handlers={ApiError: _on_error}
    )
    app.state.gateway = gateway
    return app


def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error)


def _error(error: ApiError) -> Response:
    return Response(
        error.body(), error.status, headers=error.headers, media_type="application/json"
    )


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
