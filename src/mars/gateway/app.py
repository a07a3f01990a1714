# SPDX-License-Identifier: Apache-2.0
"""The gateway as a value: a Starlette app over hub, admission, load and proxy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mars.config import ConfigError, GatewayConfig, MarsConfig
from mars.core import events as ev
from mars.core.policy import AdmissionPolicy, admission_policies
from mars.gateway.admin import Admin
from mars.gateway.admission import Admission
from mars.gateway.health import Health
from mars.gateway.hub import Hub
from mars.gateway.keyring import Keyring
from mars.gateway.load import LoadBoard
from mars.gateway.metrics import GatewayMetrics
from mars.gateway.openai import ApiError
from mars.gateway.proxy import Proxy, engine_client
from mars.gateway.reload import Change, Reread, change_between, with_changes
from mars.gateway.restore import session_of
from mars.gateway.samplers import HostSampler, TelemetryError, scrape
from mars.gateway.tenants import Tenants
from mars.gateway.tracing import Tracing
from mars.gateway.turns import Turns
from mars.gateway.wire import HeadLimit

HOST_INTERVAL_S = 0.5
SCRAPE_INTERVAL_S = 0.5
"""Both well below the age at which telemetry counts as stale (2 s by default)."""
FORGET_INTERVAL_S = 60.0
PASSED = ("/tokenize", "/detokenize", "/version")
"""Paths of vLLM outside ``/v1`` that clients use and that generate nothing."""

_log = structlog.get_logger("mars.gateway")


class Gateway:
    """One control plane: its parts and their tasks.

    Args:
        config: all settings.
        policy: an admission policy, in place of the configured one.
        clock: monotonic seconds.
        reread: reads the settings anew; None: they cannot be reloaded.

    Raises:
        ConfigError: a key that cannot be used.
        TracingError: spans are wanted and their packages missing.
    """

    def __init__(
        self,
        config: MarsConfig,
        policy: AdmissionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        reread: Reread | None = None,
    ) -> None:
        self.settings = config
        self.clock = clock
        self.tenants = Tenants(self.config.keys)
        self.keys = Keyring(self.config, self.tenants, clock)
        policy = policy or _policy_of(config)
        self.hub = Hub(config.telemetry, clock)
        self.board = LoadBoard(
            self.config.telemetry_stale_s,
            lambda: self.admission.num_held,
            config.tools.slots,
            config.telemetry.engine_ranks if self.hub.has_engine_events else 1,
        )
        self.admission = Admission(
            policy,
            self.config,
            load=self.board.load,
            is_stale=self.board.is_stale,
            emit=self.hub.emit,
            clock=clock,
            observe=self._policy_took,
            tenants=self.tenants,
        )
        self.turns = Turns(self.admission, self.hub, self.board, clock, config.tools)
        self.metrics = GatewayMetrics(self.hub, self.admission, self.board, self.tenants, clock)
        self.proxy = Proxy(self.config, self.turns, self.keys, self.metrics.answered)
        self.hub.listeners += [self.board.apply, self.turns.apply, self.metrics.apply]
        self.tracing = Tracing.from_environment(clock) if config.telemetry.spans else None
        self.stopping = asyncio.Event()
        self._reread = reread
        for view in self.hub.fold.sessions.values():
            if view.admitted_at is not None or view.held_since is not None:
                num_tokens = view.first_prompt_tokens
                session = session_of(view, clock())
                self.admission.restore(session, view.held_since, num_tokens)
        if self.hub.past is not None:
            self.turns.echo.recall(self.hub.past.calls)
        self._host = HostSampler(self._tools)
        self._alarms: list[str] = []
        self.defects: list[str] = []
        """Parts that died of a defect; only a restart brings them back."""

    @property
    def config(self) -> GatewayConfig:
        """Settings of ``[gateway]`` as they are now."""
        return self.settings.gateway

    @property
    def policy(self) -> AdmissionPolicy:
        """The admission policy that decides now."""
        return self.admission.policy

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
            self._begin("admission control", self._control()),
            self._begin("host sampling", self._every(HOST_INTERVAL_S, self._sample_host)),
            self._begin("forgetting", self._every(FORGET_INTERVAL_S, self._forget_strangers)),
            self._begin("model name", self._learn_model_name()),
        ]
        if not self.hub.has_engine_events:
            tasks.append(self._begin("engine sampling", self._scrape_engine()))
        if self.tracing is not None:
            tasks.append(self._begin("spans", self.tracing.follow(self.hub.bus.reader())))
        try:
            yield
        finally:
            self.drain()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.proxy.client.close()
            await self.hub.stop()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    def _begin(self, part: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=part)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        """A part ended: by a defect, unless it was told to."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.defects.append(task.get_name())
            _log.error("a part of the gateway died", part=task.get_name(), exc_info=error)

    def drain(self) -> None:
        """Turn held sessions away and end event streams; turns in flight finish."""
        self.admission.drain()
        self.stopping.set()

    def reload(self) -> Change:
        """Read the settings anew and change what can change; all of it, or nothing.

        Raises:
            ConfigError: there is nothing to read, or it cannot be used.
            ValueError: no admission policy of that name, or not with these options.
        """
        if self._reread is None:
            raise ConfigError("this gateway was not started from a file or environment")
        new = self._reread()
        change = change_between(self.settings, new)
        is_other_policy = {"gateway.admission", "gateway.admission_options"} & set(change.changed)
        policy = _policy_of(new) if is_other_policy else self.policy
        config = with_changes(self.config, new, change)
        self.keys.replace(config)  # the last that can fail
        self.tenants.replace(config.keys)
        self.settings = msgspec.structs.replace(self.settings, gateway=config)
        self.admission.policy = policy
        self.admission.config = self.proxy.config = config
        self.board.stale_s = config.telemetry_stale_s
        _log.info("settings reloaded", **msgspec.to_builtins(change))
        self.hub.emit(
            ev.SettingsReloaded(
                time=self.clock(), changed=change.changed, needs_restart=change.needs_restart
            )
        )
        return change

    async def _control(self) -> None:
        while True:
            self._tick()
            await asyncio.sleep(self.config.control_interval_s)

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
                _, body = await self.ask("/v1/models")
                models = msgspec.json.decode(body, type=dict[str, Any]).get("data")
                if isinstance(models, list) and models:
                    self.metrics.model_name = str(models[0].get("id", "unknown"))
                    if self.tracing is not None:
                        self.tracing.model_name = self.metrics.model_name
                    return
            await asyncio.sleep(2.0)

    async def ask(self, path: str) -> tuple[int, bytes]:
        """GET something small from the engine: status and body.

        Raises:
            aiohttp.ClientError: it cannot be reached.
            TimeoutError: no answer within 2 s.
        """
        assert self.proxy.client is not None
        headers = {}
        if self.config.engine_api_key is not None:
            headers["Authorization"] = f"Bearer {self.config.engine_api_key}"
        url = self.config.engine_url.rstrip("/") + path
        timeout = aiohttp.ClientTimeout(total=2.0)
        async with self.proxy.client.get(url, headers=headers, timeout=timeout) as response:
            return response.status, await response.read()

    async def render_metrics(self, request: Request) -> Response:
        """Prometheus text."""
        self.keys.admit_metrics(request.scope)
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")


def build_app(
    config: MarsConfig,
    policy: AdmissionPolicy | None = None,
    clock: Callable[[], float] = time.monotonic,
    reread: Reread | None = None,
) -> Starlette:
    """The gateway as an ASGI app; its :class:`Gateway` is ``app.state.gateway``.

    Raises:
        UnknownPolicyError: no admission policy of the configured name.
        LogError: the event log cannot be written.
        ConfigError: a key that cannot be used.
        TracingError: spans are wanted and their packages missing.
    """
    gateway = Gateway(config, policy, clock, reread)
    routes = [
        Route("/v1/{rest:path}", gateway.proxy),
        Route("/s/{session}/v1/{rest:path}", gateway.proxy),
        *(Route(path, gateway.proxy) for path in PASSED),
        *Health(gateway).routes(),
        Route("/metrics", gateway.render_metrics),
        *Admin(gateway).routes(),
    ]
    app = Starlette(
        routes=routes,
        lifespan=gateway.lifespan,
        exception_handlers={
            ApiError: _on_error,
            HTTPException: _on_http_error,
            Exception: _on_defect,
        },
        middleware=[Middleware(HeadLimit, limit=lambda: gateway.config.max_header_bytes)],
    )
    app.state.gateway = gateway
    return app


def _policy_of(config: MarsConfig) -> AdmissionPolicy:
    return admission_policies.create(config.gateway.admission, **config.gateway.admission_options)


def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(
        error.body(), error.status, headers=error.headers, media_type="application/json"
    )


def _on_defect(request: Request, error: Exception) -> Response:
    """What nobody expected; the server logs it, the client learns nothing of it."""
    return _on_error(request, ApiError(500, "the gateway failed; its log says why"))


def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = (
            "the gateway serves /v1/..., /health, /ready, /metrics and /mars/v1/..., "
            f"not {request.url.path}"
        )
    else:
        message = f"{request.url.path}: {error.detail}"
    return _on_error(request, ApiError(error.status_code, message, headers=error.headers))
