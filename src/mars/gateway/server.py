# SPDX-License-Identifier: Apache-2.0
"""Runs the gateway under uvicorn: clear start errors, graceful end."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from types import FrameType

import structlog
import uvicorn
from starlette.applications import Starlette

from mars.config import GatewayConfig, MarsConfig, is_loopback
from mars.core.policy import AdmissionPolicy
from mars.gateway.app import Gateway, build_app
from mars.gateway.reload import Reread
from mars.gateway.wire import protocol_with

GONE_S = 60
"""A client whose host vanished without a word (half-open socket) is let go after so long:
twice the longest heartbeat, well below the time that places in the queue are kept."""
BACKLOG = 4096
"""Connections waiting to be accepted: more than the largest burst of the tests."""

_log = structlog.get_logger("mars.gateway")


class StartError(RuntimeError):
    """The gateway cannot start; the message names the setting and the fix."""


class GatewayServer(uvicorn.Server):
    """uvicorn that turns held sessions away as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._is_on_terminal = sys.stdin is not None and sys.stdin.isatty()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and from now on reload at SIGHUP."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        """Read the settings anew; started on a terminal, the signal says that it is gone."""
        if self._is_on_terminal:
            self.handle_exit(signal.SIGTERM, None)
            return
        try:
            self._gateway.reload()
        except ValueError as error:  # ConfigError, and what a policy says of its options
            _log.error("settings not reloaded: nothing was changed", error=str(error))

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
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        self.config.timeout_graceful_shutdown = max(1, round(self._gateway.config.drain_s))
        self._gateway.drain()
        await super().shutdown(sockets)


def listen(config: GatewayConfig) -> socket.socket:
    """Bind the gateway's address before anything else is started.

    Raises:
        StartError: the port is in use, the address is not of this host, or other hosts
            could reach the admin endpoints without a key.
    """
    if not is_loopback(config.host) and not config.admin_key:
        raise StartError(
            f"gateway.host {config.host} can be reached from other hosts: set gateway.admin_key "
            "(MARS_GATEWAY__ADMIN_KEY), which state, events, reload and drain then ask for"
        )
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
    _notice_the_vanished(sock)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _notice_the_vanished(sock: socket.socket) -> None:
    """Let the kernel end half-open connections; accepted sockets inherit this on Linux."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_S // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE_S // 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_S * 1000)


def make_server(app: Starlette, config: GatewayConfig) -> GatewayServer:
    """A server for an app made by :func:`mars.gateway.build_app`."""
    gateway: Gateway = app.state.gateway
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
        http=protocol_with(lambda: gateway.config.max_header_bytes),
    )
    return GatewayServer(settings, gateway)


def run(
    config: MarsConfig, policy: AdmissionPolicy | None = None, reread: Reread | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP reloads what ``reread`` reads.

    Raises:
        StartError: the address cannot be listened on.
        UnknownPolicyError: no admission policy of the configured name.
        LogError: the event log cannot be written.
    """
    sock = listen(config.gateway)
    try:
        app = build_app(config, policy, reread=reread)
        make_server(app, config.gateway).run(sockets=[sock])
    finally:
        sock.close()
