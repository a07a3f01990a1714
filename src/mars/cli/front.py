# SPDX-License-Identifier: Apache-2.0
"""The gateway in this process: run it until told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mars.config import MarsConfig


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set ``stop``; call it inside a running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def run_gateway(config: MarsConfig, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set; print one line on standard output when it listens."""
    from mars.gateway import serve_gateway

    def announce(url: str) -> None:
        print(
            f"MARS serves {url}/v1 (policy {config.engine.policy}, "
            f"admission {config.gateway.admission})",
            flush=True,
        )
        print("mars: Ctrl-C ends it", file=sys.stderr, flush=True)

    await serve_gateway(config, stop=stop, on_ready=announce)
