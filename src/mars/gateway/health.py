# SPDX-License-Identifier: Apache-2.0
"""``/health`` and ``/ready``: what is so, found out when asked.

``/health`` is the engine's health, as clients of vLLM know it. ``/ready`` is whether new
sessions are served: the engine answers, its telemetry is fresh, nobody drains the gateway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mars.gateway.openai import ApiError
from mars.gateway.proxy import engine_error

if TYPE_CHECKING:
    from mars.gateway.app import Gateway


class Health:
    """The two endpoints of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """Both, and vLLM's other name of the first."""
        return [
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/ready", self.ready),
        ]

    async def health(self, request: Request) -> Response:
        """200 and nothing when the engine answers and is healthy; else 503 with the cause."""
        error = await self._engine_fault()
        if error is not None:
            raise error
        return Response(status_code=200)

    async def ready(self, request: Request) -> Response:
        """200 when new sessions are served; else 503 with every reason."""
        gateway = self._gateway
        error = await self._engine_fault()
        reasons = [f"{part} died, see the log; restart the gateway" for part in gateway.defects]
        reasons += [] if error is None else [error.message]
        if gateway.board.is_stale(gateway.clock()):
            reasons += gateway.board.alarms(gateway.clock())
        if gateway.admission.is_draining:
            reasons.append("the gateway drains: it takes no new sessions")
        return Response(
            msgspec.json.encode({"ready": not reasons, "reasons": reasons}),
            status_code=503 if reasons else 200,
            media_type="application/json",
        )

    async def _engine_fault(self) -> ApiError | None:
        url = self._gateway.config.engine_url
        try:
            status, _ = await self._gateway.ask("/health")
        except aiohttp.ClientError as error:
            return engine_error(url, error)
        except TimeoutError:
            return ApiError(503, f"the engine at {url} does not answer")
        if status != 200:
            return ApiError(503, f"the engine at {url} answers /health with {status}")
        return None
