# SPDX-License-Identifier: Apache-2.0
"""`mars serve`: vLLM with the plug-in in it and the control plane in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from mars.cli.engine_command import EngineRequest, engine_command
from mars.cli.engine_process import EngineProcess
from mars.cli.errors import CliError
from mars.cli.front import run_gateway, stop_on_signals
from mars.cli.ports import free_port, require_free
from mars.cli.ranks import engine_ranks
from mars.cli.settings import NO_SETTINGS, SettingsFlags
from mars.config import MarsConfig, check_policies
from mars.gateway import listen
from mars.tools.configured import cores_beside

app = App(
    name="serve",
    help_epilogue="""**Examples**

```sh
mars serve Qwen/Qwen3-Coder-30B-A3B-Instruct -- --max-model-len 131072
mars serve MODEL --policy mars-paper --admission aimd-paper --events run.jsonl
mars serve --emulate h100-qwen3-coder-30b --kv-tokens 120000   # needs no GPU
mars serve MODEL --host-kv-gib 200        # KV of waiting sessions goes to host memory
mars serve MODEL --stock                  # vLLM's own scheduler, as the baseline
```
""",
)


@app.default
def serve(
    model: str | None = None,
    /,
    *vllm_flags: Annotated[str, Parameter(allow_leading_hyphen=True)],
    host: str | None = None,
    port: int | None = None,
    policy: str | None = None,
    admission: str | None = None,
    emulate: str | None = None,
    kv_tokens: int | None = None,
    time_scale: float | None = None,
    host_kv_gib: float | None = None,
    stock: Annotated[bool, Parameter(negative=())] = False,
    events: Path | None = None,
    engine_port: int = 0,
    engine_log: Path | None = None,
    engine_timeout_s: float = 900.0,
    settings: SettingsFlags = NO_SETTINGS,
) -> None:
    """Start vLLM with the MARS scheduler in it and the MARS gateway in front of it.

    Clients speak to the gateway as they would to vLLM. Everything after `--` goes to vLLM
    as it is. Ctrl-C or SIGTERM ends both.

    Parameters
    ----------
    model
        Model name or directory, as vLLM takes it.
    vllm_flags
        Flags of vLLM's API server, after `--`.
    host
        Address to listen on [gateway.host].
    port
        Port to listen on, 0 for a free one [gateway.port].
    policy
        Scheduling policy inside the engine [engine.policy].
    admission
        Admission policy in front of it [gateway.admission].
    emulate
        Run on an emulated accelerator with this profile instead of on a GPU.
    kv_tokens
        KV pool of the emulated accelerator; default: what the profile's memory holds.
    time_scale
        The emulated accelerator is so many times slower than its profile.
    host_kv_gib
        Host memory for KV that the GPU has no room for, in GiB over all ranks: vLLM's own
        `--kv-offloading-size`. Default: none.
    stock
        Leave vLLM's own scheduler in place: the baseline, and no engine events.
    events
        Append every event to this JSONL file [telemetry.events_path].
    engine_port
        Port of vLLM itself, on loopback; 0 takes a free one.
    engine_log
        File for vLLM's output; default: a temporary one, kept when something fails.
    engine_timeout_s
        How long vLLM may take to load.
    """
    if model is not None and model.startswith("-"):
        # `mars serve --emulate PROFILE -- --flag`: the first vLLM flag is no model.
        model, vllm_flags = None, (model, *vllm_flags)
    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.admission": admission,
        "engine.policy": policy,
        "engine.profile": emulate,
        "engine.time_scale": time_scale,
        "telemetry.events_path": events and str(events),
    }
    read = partial(_read, settings, flags, vllm_flags)
    config = read()
    _check(config, engine_port, is_misplaced=emulate is None and bool(kv_tokens or time_scale))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(listen(config.gateway)))
        directory = Path(tempfile.mkdtemp(prefix="mars-"))
        wire = partial(
            _wired, directory=directory, engine_port=engine_port or free_port(), is_stock=stock
        )
        config = wire(config)
        request = EngineRequest(
            model=model,
            config=config.engine,
            port=int(config.gateway.engine_url.rpartition(":")[2]),
            flags=vllm_flags,
            host_kv_gib=host_kv_gib,
            is_stock=stock,
            is_emulated=emulate is not None,
            kv_tokens=kv_tokens,
            directory=directory,
        )
        beside = cores_beside(config.tools)  # the engine keeps off the tools' cores
        engine = _prepared(request, config.gateway.engine_url, engine_log, beside)
        asyncio.run(
            serve_until_stopped(engine, config, listener, engine_timeout_s, lambda: wire(read()))
        )
    # Kept after a failure, which leaves by an exception: the engine's log is in it.
    shutil.rmtree(directory, ignore_errors=True)


def _read(
    settings: SettingsFlags, flags: Mapping[str, Any], vllm_flags: Sequence[str]
) -> MarsConfig:
    """All settings; how many ranks publish is what vLLM is told to start."""
    config = settings.read(flags)
    ranks = engine_ranks(vllm_flags, config.telemetry.engine_ranks)
    telemetry = msgspec.structs.replace(config.telemetry, engine_ranks=ranks)
    return msgspec.structs.replace(config, telemetry=telemetry)


def _check(config: MarsConfig, engine_port: int, *, is_misplaced: bool) -> None:
    """Find what would fail after the engine's long start."""
    if is_misplaced:
        raise CliError(
            "--kv-tokens and --time-scale are for an emulated accelerator",
            "add --emulate PROFILE, or size the pool with vLLM's own flags after `--`",
        )
    check_policies(config)
    require_free(config.gateway.host, config.gateway.port, "gateway.port")
    if engine_port:
        require_free("127.0.0.1", engine_port, "--engine-port")


def _prepared(
    request: EngineRequest, url: str, log_path: Path | None, cores: frozenset[int] | None
) -> EngineProcess:
    """The engine, not started; what is on disk goes away if it cannot be."""
    try:
        command, environment = engine_command(request)
    except Exception:
        shutil.rmtree(request.directory, ignore_errors=True)
        raise
    path = log_path or request.directory / "engine.log"
    return EngineProcess(command, environment, url, path, cores)


def _wired(config: MarsConfig, directory: Path, engine_port: int, *, is_stock: bool) -> MarsConfig:
    """Engine and gateway on the same addresses, of which the user need not know."""
    replace = msgspec.structs.replace
    gateway = replace(config.gateway, engine_url=f"http://127.0.0.1:{engine_port}")
    given = config.engine
    if is_stock:
        return replace(config, gateway=gateway, engine=replace(given, policy="vLLM's own"))
    events = given.events_endpoint or f"ipc://{directory}/events"
    control = given.control_endpoint or f"ipc://{directory}/control"
    return replace(
        config,
        gateway=gateway,
        engine=replace(given, events_endpoint=events, control_endpoint=control),
        telemetry=replace(config.telemetry, events_endpoint=events, control_endpoint=control),
    )


async def serve_until_stopped(
    engine: EngineProcess,
    config: MarsConfig,
    listener: socket.socket,
    timeout_s: float,
    reread: Callable[[], MarsConfig],
) -> None:
    """Run engine and gateway until a signal comes; leave nothing behind.

    Raises:
        CliError: the engine did not come up, or died.
    """
    stop = asyncio.Event()
    with stop_on_signals(stop):
        try:
            await engine.start()
            _say(f"starting the engine; its log: {engine.log_path}")
            if not await _ready(engine, timeout_s, stop):
                return
            gateway = asyncio.create_task(run_gateway(config, listener, stop, reread))
            died = asyncio.create_task(engine.wait())
            await asyncio.wait({gateway, died}, return_when=asyncio.FIRST_COMPLETED)
            failure = engine.died() if died.done() and not stop.is_set() else None
            stop.set()
            await gateway
            died.cancel()
            if failure:
                raise failure
        finally:
            await engine.stop()


async def _ready(engine: EngineProcess, timeout_s: float, stop: asyncio.Event) -> bool:
    """Whether the engine came up before someone asked to stop."""
    ready = asyncio.create_task(engine.ready(timeout_s))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        return False
    stopped.cancel()
    _say(f"the engine is ready after {ready.result():.0f} s")
    return True


def _say(text: str) -> None:
    print(f"mars: {text}", file=sys.stderr, flush=True)
