# SPDX-License-Identifier: Apache-2.0
"""A replay against a server that somebody else runs: what its clients see, no more."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console

from mars.bench.client import Replay, ReplaySettings
from mars.bench.compare import Run
from mars.bench.ideal import ideal_time_s
from mars.bench.live import comparison
from mars.bench.metrics import summarise
from mars.bench.quality import HostWatch, assess
from mars.bench.result import Result, RunTotals, SessionRecord, write_result
from mars.bench.runner import environment
from mars.bench.toolside import ToolSide
from mars.cli.errors import CliError
from mars.profiles import load_profile
from mars.tools.slots import default_slots
from mars.traces.io import read_trace
from mars.traces.schema import TraceSession, require_turns


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """What the user asked for."""

    trace: str
    url: str
    model: str | None
    num_sessions: int | None
    tool_slots: int | None
    tool_policy: str
    time_scale: float
    is_scripted: bool
    machine: str | None
    out: Path | None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def run_replay(request: ReplayRequest) -> None:
    """Replay, show the measures, and write the result where asked.

    Raises:
        CliError: no server there, or it cut the replay short.
    """
    sessions = list(require_turns(read_trace(request.trace)))[: request.num_sessions]
    result, stop_reason = asyncio.run(_replay(request, sessions))
    if request.out is not None:
        write_result(request.out, result)
    Console().print(comparison([Run(request.url, result)]))
    if stop_reason:
        raise CliError(f"the replay was cut short: {stop_reason}", "see the server's log")


async def _replay(
    request: ReplayRequest, sessions: list[TraceSession]
) -> tuple[Result, str | None]:
    settings = ReplaySettings(
        url=request.url,
        model=request.model or await first_model(request.url),
        time_scale=request.time_scale,
        is_scripted=request.is_scripted,
    )
    watch = HostWatch()
    async with ToolSide(request.tool_slots or default_slots(), request.tool_policy) as tools:
        replay = Replay(sessions, settings, tools)
        watching = asyncio.create_task(watch.run())
        try:
            await replay.run()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    return _result(request, replay, sessions, watch), replay.stop_reason


def _result(
    request: ReplayRequest, replay: Replay, sessions: list[TraceSession], watch: HostWatch
) -> Result:
    records = replay.records()
    if request.machine is not None:
        cost = load_profile(request.machine).cost
        for record, session in zip(records, sessions, strict=True):
            record.ideal_s = ideal_time_s(session, cost)
    return Result(
        config={"trace": request.trace, "machine": request.machine, "settings": _plain(replay)},
        summary=summarise(records, RunTotals(duration_s=_duration_s(records, replay))),
        sessions=records,
        replay=assess(
            replay.lags_s,
            watch,
            time_scale=request.time_scale,
            engine_late_s=None,
            engine_busy_s=None,
        ),
        environment=environment(),
    )


def _plain(replay: Replay) -> dict[str, object]:
    return msgspec.to_builtins(replay.settings)


def _duration_s(records: list[SessionRecord], replay: Replay) -> float:
    ends = [r.arrival_s + r.sct_s for r in records if r.sct_s is not None]
    if len(ends) == len(records) and ends:
        return max(ends) - min(r.arrival_s for r in records)
    return replay.modelled(replay.ended_at - replay.started_at)


async def first_model(url: str) -> str:
    """The first model that a server offers.

    Raises:
        CliError: no server there, or none offered.
    """
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(10)) as reply,
        ):
            reply.raise_for_status()
            models = msgspec.json.decode(await reply.read(), type=_Models).data
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
        raise CliError(
            f"--url: no server offers models at {url}/v1/models ({error})",
            "start one with `mars serve`, or correct the URL",
        ) from error
    if not models:
        raise CliError(f"{url} offers no model", "name one with --model")
    return models[0].id
