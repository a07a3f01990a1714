# SPDX-License-Identifier: Apache-2.0
"""`mars gateway`: the control plane in front of an engine that already runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
from cyclopts import App

from mars.cli.engine_process import POLL_S, is_healthy
from mars.cli.errors import CliError
from mars.cli.front import run_gateway, stop_on_signals
from mars.cli.ports import require_free
from mars.cli.settings import NO_SETTINGS, SettingsFlags
from mars.config import MarsConfig, check_policies
from mars.gateway import listen

app = App(
    name="gateway",
    help_epilogue="""**Examples**

```sh
mars gateway --engine http://127.0.0.1:8001 --admission working-set
mars gateway --engine http://gpu-box:8000 --admission cap:8 --port 9000
```

An engine with the plug-in says more about itself; give both sides the same addresses:

```sh
python -m vllm.entrypoints.openai.api_server --model MODEL --port 8001 \\
    --scheduler-cls mars.engine.vllm.MarsScheduler --additional-config \\
    '{"mars": {"events_endpoint": "tcp://127.0.0.1:5601"}}'
mars gateway --engine http://127.0.0.1:8001 \\
    --set telemetry.events_endpoint=tcp://127.0.0.1:5601
```
""",
)


@app.default
def gateway(
    *,
    engine: str | None = None,
    host: str | None = None,
    port: int | None = None,
    admission: str | None = None,
    events: Path | None = None,
    wait_s: float = 0.0,
    settings: SettingsFlags = NO_SETTINGS,
) -> None:
    """Put the MARS control plane in front of a vLLM that already runs.

    Without the plug-in in that engine, sessions are admitted and held, and nothing else:
    choose `--admission working-set` then, since `mars` admits more and counts on the policy
    `mars` inside the engine to let sessions wait between turns.

    Parameters
    ----------
    engine
        Base URL of the engine, without `/v1` [gateway.engine_url].
    host
        Address to listen on [gateway.host].
    port
        Port to listen on, 0 for a free one [gateway.port].
    admission
        Admission policy [gateway.admission].
    events
        Append every event to this JSONL file [telemetry.events_path].
    wait_s
        Give an engine that does not answer yet so many seconds.
    """
    flags = {
        "gateway.engine_url": engine and engine.rstrip("/").removesuffix("/v1"),
        "gateway.host": host,
        "gateway.port": port,
        "gateway.admission": admission,
        "telemetry.events_path": events and str(events),
    }
    config = settings.read(flags)
    check_policies(config)
    require_free(config.gateway.host, config.gateway.port, "gateway.port")
    with contextlib.closing(listen(config.gateway)) as listener:
        asyncio.run(_run(config, listener, wait_s, partial(settings.read, flags)))


async def _run(
    config: MarsConfig, listener: socket.socket, wait_s: float, reread: Callable[[], MarsConfig]
) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        await _require_engine(config.gateway.engine_url, wait_s, stop)
        await run_gateway(config, listener, stop, reread)


async def _require_engine(url: str, wait_s: float, stop: asyncio.Event) -> None:
    deadline = time.monotonic() + wait_s
    async with aiohttp.ClientSession() as client:
        while not await is_healthy(client, url):
            if stop.is_set():
                sys.exit(130)
            if time.monotonic() >= deadline:
                raise CliError(
                    f"gateway.engine_url: no healthy engine answers at {url}/health",
                    "start vLLM there, name it with --engine, or let `mars serve` start it; "
                    "--wait-s gives a starting one time",
                )
            await asyncio.sleep(POLL_S)
