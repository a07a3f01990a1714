# SPDX-License-Identifier: Apache-2.0
"""The gateway in this process: run it until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mars.cli.logs import log_to_stderr
from mars.cli.tool_server import tool_server
from mars.config import MarsConfig
from mars.gateway import build_app, make_server
from mars.gateway.server import GatewayServer

POLL_S = 0.05
URL_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""What to write in a URL for "every address"."""


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set ``stop``; use it inside a running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def run_gateway(
    config: MarsConfig,
    listener: socket.socket,
    stop: asyncio.Event,
    reread: Callable[[], MarsConfig],
) -> None:
    """Serve until ``stop`` is set; print one line on standard output once it answers.

    Args:
        config: all settings.
        listener: the address, bound.
        stop: set it to end; it is set in any case when this returns.
        reread: reads the settings anew, for a reload.
    """
    log_to_stderr(config.telemetry.log_format)
    app = build_app(config, reread=reread)
    hub = app.state.gateway.hub
    async with tool_server(config.tools, lambda event: hub.emit(event, "tools")) as tools:
        await _serve(make_server(app, config.gateway), config, listener, stop, tools)


async def _serve(
    server: GatewayServer,
    config: MarsConfig,
    listener: socket.socket,
    stop: asyncio.Event,
    tools: Path,
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event
        await asyncio.sleep(POLL_S)
    if server.started:
        host, port = listener.getsockname()[:2]
        print(
            f"MARS serves http://{URL_HOSTS.get(host, host)}:{port}/v1 "
            f"(policy {config.engine.policy}, admission {config.gateway.admission})",
            flush=True,
        )
        print(f"mars: tools on this machine: export MARS_TOOLS={tools}", file=sys.stderr)
        print("mars: Ctrl-C ends it", file=sys.stderr, flush=True)
    stopping = asyncio.create_task(stop.wait())
    # The server takes signals for itself while it runs, so it may end first.
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    await serving
    stop.set()
