# SPDX-License-Identifier: Apache-2.0
"""Runs the gateway under uvicorn: clear start errors, graceful end."""

from __future__ import annotations

import errno
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from mars.config import GatewayConfig, MarsConfig
from mars.core.policy import AdmissionPolicy
from mars.gateway.app import Gateway, build_app

BACKLOG = 4096
"""Connections waiting to be accepted: more than the largest burst of the tests."""


class StartError(RuntimeError):
    """The gateway cannot start; the message names the setting and the fix."""


class GatewayServer(uvicorn.Server):
    """uvicorn that turns held sessions away as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: stop accepting, and let turns in flight finish.

        A second SIGINT does not wait for them. Unlike uvicorn's own, the signal is not
        raised again afterwards: who called :func:`run` still has an engine to stop.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._gateway.admission.is_draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer whoever is held, then wait for the turns in flight."""
        self._gateway.drain()
        await super().shutdown(sockets)


def listen(config: GatewayConfig) -> socket.socket:
    """Bind the gateway's address before anything else is started.

    Raises:
        StartError: the port is in use, or the address is not of this host.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        where = f"gateway.port {config.port} on {config.host}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"{where} is in use; stop what listens there, or choose another with "
                "--port or MARS_GATEWAY__PORT (0 takes a free one)"
            ) from error
        raise StartError(
            f"{where} cannot be bound ({error.strerror}); check gateway.host"
        ) from error
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def make_server(app: Starlette, config: GatewayConfig) -> GatewayServer:
    """A server for an app made by :func:`mars.gateway.build_app`."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
    )
    return GatewayServer(settings, app.state.gateway)


def run(config: MarsConfig, policy: AdmissionPolicy | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        StartError: the address cannot be listened on.
        UnknownPolicyError: no admission policy of the configured name.
        LogError: the event log cannot be written.
    """
    sock = listen(config.gateway)
    try:
        app = build_app(config, policy)
        make_server(app, config.gateway).run(sockets=[sock])
    finally:
        sock.close()
