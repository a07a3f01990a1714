# SPDX-License-Identifier: Apache-2.0
"""TCP ports: find a free one, or say who has the one that was asked for."""

from __future__ import annotations

import errno
import socket

import psutil

from mars.cli.errors import CliError


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def require_free(host: str, port: int, setting: str) -> None:
    """Fail now, rather than after the engine's long start.

    Raises:
        CliError: the port is taken or may not be used; ``setting`` is named.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CliError(*_explain(host, port, setting, error)) from None


def _explain(host: str, port: int, setting: str, error: OSError) -> tuple[str, str]:
    if error.errno == errno.EADDRINUSE:
        return (
            f"{setting}: port {port} on {host} is in use{_owner(port)}",
            f"stop that server, or choose another port with --port (free now: {free_port()})",
        )
    if error.errno == errno.EACCES:
        return f"{setting}: port {port} needs privileges", "choose a port above 1023"
    return (
        f"{setting}: cannot listen on {host} port {port}: {error.strerror or error}",
        "gateway.host must be an address of this machine",
    )


def _owner(port: int) -> str:
    """`` by NAME (pid N)`` where the system lets us see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""
