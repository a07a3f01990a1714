# SPDX-License-Identifier: Apache-2.0
"""The tool server beside a gateway: slots for the tools of agents on this machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from mars.cli.errors import CliError
from mars.config import ToolsConfig
from mars.core.events import Event
from mars.tools.configured import make_pool
from mars.tools.server import ToolServer

NAME = "tools.sock"


@contextlib.asynccontextmanager
async def tool_server(config: ToolsConfig, emit: Callable[[Event], object]) -> AsyncIterator[Path]:
    """Serve the pool that ``tools`` describes; yields its socket, for ``MARS_TOOLS``.

    Nothing is sampled before the first tool asks, so that a pool elsewhere stays the
    only one that speaks of this machine's tools.

    Raises:
        CliError: the socket cannot be made.
    """
    is_open = True

    def tell(event: Event) -> None:
        if is_open:  # the gateway's log is closed when calls are given up at the end
            emit(event)

    pool = make_pool(config, tell)
    folder = None
    if config.socket is None:
        folder = Path(tempfile.mkdtemp(prefix="mars-tools-"))  # ours alone: mode 0700
    path = Path(config.socket or f"{folder}/{NAME}")
    server = ToolServer(pool, path)
    try:
        await server.start()
    except OSError as error:
        raise CliError(
            f"tools.socket: {path}: {error}", "name a path in a folder you may write to"
        ) from error
    try:
        yield path
    finally:
        is_open = False
        await server.close()
        await pool.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
