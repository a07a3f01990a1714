# SPDX-License-Identifier: Apache-2.0
"""One policy after the other under the same OpenHands tasks, measured and compared."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from mars.bench.compare import Run, markdown, speed_up_text
from mars.bench.live import comparison
from mars.bench.metrics import summarise
from mars.bench.openhands.fleet import Fleet
from mars.bench.openhands.plan import (
    conversation_id,
    prepare_workspace,
    task_text,
    write_scripts,
)
from mars.bench.plots import PlottedRun
from mars.bench.quality import HostWatch, assess
from mars.bench.report import quality_text, write_report
from mars.bench.result import Result, SessionRecord, write_result
from mars.bench.runner import (
    BOOT_TIMEOUT_S,
    Experiment,
    Outcome,
    environment,
    serve_arguments,
)
from mars.bench.scenario import Contestant, pressure
from mars.bench.server import Server
from mars.bench.timeline import Timeline, build_timeline, fill_records, run_totals
from mars.telemetry.sink import read_events
from mars.traces.schema import TraceSession

PROGRESS_S = 15.0
TOOL_WAIT_S = 3600
"""A tool waits for its slot as long as it takes: the queue is part of what is measured."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the tasks are run.

    Attributes:
        experiment: scenario, sessions and machine.
        out: folder for the report and one folder per policy.
        num_processes: OpenHands processes that share the tasks.
        limit_s: real seconds after which a policy's run is cut short.
        port: where the gateway listens.
        url: a server that already runs; None starts one for each policy.
        console: where to show it.
    """

    experiment: Experiment
    out: Path
    num_processes: int
    limit_s: float
    port: int
    console: Console
    url: str | None = None

    async def run(self) -> list[Outcome]:
        """Run every policy of the scenario; write the report also when cut short."""
        scenario = self.experiment.scenario
        self.console.rule(scenario.title)
        load = pressure(self.experiment.sessions, self.experiment.kv_tokens)
        self.console.print(f"Pressure: {load}", highlight=False)
        outcomes: list[Outcome] = []
        try:
            live = Contestant(label="live", policy="as served")
            for contestant in (live,) if self.url else scenario.policies:
                outcomes.append(await self._one(contestant))
                run = Run(contestant.label, outcomes[-1].result)
                self.console.print(quality_text(run.result.replay), style="dim", highlight=False)
        finally:
            if outcomes:
                self._close(str(load), outcomes)
        return outcomes

    async def _one(self, contestant: Contestant) -> Outcome:
        """One policy, from the engine's start to the written result."""
        folder, machine = self.out / contestant.label, self.experiment.scenario.machine
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sessions = self.experiment.sessions
        works = [(folder / "work" / str(i)).resolve() for i, _ in enumerate(sessions)]
        for session, work in zip(sessions, works, strict=True):
            prepare_workspace(session, work)
        server = self._server(contestant, folder, works)
        records = {
            s.session_id: SessionRecord(session_id=s.session_id, arrival_s=s.arrival_s, sct_s=None)
            for s in sessions
        }
        fleet = Fleet(
            self._plans(sessions, works),
            records,
            folder,
            {
                "MARS_TOOLS": self._tools(folder) if server else os.environ.get("MARS_TOOLS", ""),
                "MARS_TOOLS_WAIT_S": str(TOOL_WAIT_S),
            },
        )
        host = HostWatch()
        self.console.print(f"{contestant.label}: starting engine and OpenHands", highlight=False)
        async with contextlib.AsyncExitStack() as stack:
            if server is not None:
                await stack.enter_async_context(server.running(BOOT_TIMEOUT_S))
            await stack.enter_async_context(fleet.running())
            showing = asyncio.create_task(self._show(contestant, fleet, host))
            try:
                reason = await fleet.run(machine.time_scale, self.limit_s)
            finally:
                showing.cancel()
        return self._collect(contestant, fleet, host, list(records.values()), folder, reason)

    def _server(self, contestant: Contestant, folder: Path, works: Sequence[Path]) -> Server | None:
        """The server of one policy, with its scripts written; None where one runs already."""
        if self.url is not None:
            return None
        scripts = folder / "scripts.jsonl"
        scale = self.experiment.scenario.machine.time_scale
        write_scripts(scripts, self.experiment.sessions, works, scale)
        flags = (
            *("--set", f"engine.scripts={scripts.resolve()}"),
            *("--set", f"tools.socket={self._tools(folder)}"),
            *("--set", f"tools.policy={contestant.tool_policy}"),
            # Tools queue for slots, under every policy alike: nothing else holds them up.
            *("--set", "gateway.hold_tool_replies=off"),
        )
        arguments = [*flags, *serve_arguments(self.experiment, contestant, folder, self.port)]
        return Server(arguments, f"http://127.0.0.1:{self.port}", folder / "serve.log")

    @staticmethod
    def _tools(folder: Path) -> str:
        """Socket of the tool server that the policy's own gateway starts."""
        return f"{folder.resolve()}/tools.sock"

    def _plans(
        self, sessions: Sequence[TraceSession], works: Sequence[Path]
    ) -> list[dict[str, Any]]:
        """The tasks, dealt out in order of arrival."""
        scenario, scale = self.experiment.scenario, self.experiment.scenario.machine.time_scale
        tasks = [
            {
                "session_id": session.session_id,
                "conversation_id": conversation_id(session.session_id, scenario.seed),
                "arrival_s": session.arrival_s * scale,
                "text": task_text(session),
                "work": str(work),
            }
            for session, work in zip(sessions, works, strict=True)
        ]
        tasks.sort(key=lambda task: task["arrival_s"])
        return [
            {
                "url": self.url or f"http://127.0.0.1:{self.port}",
                "model": os.environ.get("MARS_MODEL", self.experiment.profile.model),
                "is_slotted": True,
                "tasks": tasks[number :: self.num_processes],
            }
            for number in range(self.num_processes)
        ]

    async def _show(self, contestant: Contestant, fleet: Fleet, host: HostWatch) -> None:
        """Watch the host, and say how far it is."""
        watching = asyncio.create_task(host.run())
        began = time.monotonic()
        try:
            while True:
                await asyncio.sleep(PROGRESS_S)
                total = len(self.experiment.sessions)
                self.console.print(
                    f"{contestant.label}: {fleet.num_done}/{total} tasks done after "
                    f"{time.monotonic() - began:.0f} s",
                    highlight=False,
                )
        finally:
            watching.cancel()

    def _collect(
        self,
        contestant: Contestant,
        fleet: Fleet,
        host: HostWatch,
        records: list[SessionRecord],
        folder: Path,
        reason: str | None,
    ) -> Outcome:
        scenario = self.experiment.scenario
        scale, slots = scenario.machine.time_scale, scenario.machine.tool_slots
        line = _timeline(folder / "events.jsonl", fleet.started_at, scale)
        if line is not None:
            _fill(records, line, scenario.seed)
        for record in records:
            if record.sct_s is None and record.error is None:
                record.error = reason or "not finished"
        ends = [r.arrival_s + r.sct_s for r in records if r.sct_s is not None]
        duration_s = max(ends, default=self.limit_s / scale) - min(r.arrival_s for r in records)
        sample = line.fold.engine if line else None
        complaints = [reason] if reason else []
        complaints += [] if line else ["no event log: times inside the engine are not known"]
        result = Result(
            config={
                "scenario": msgspec.to_builtins(scenario),
                "contestant": msgspec.to_builtins(contestant),
                "kv_tokens": self.experiment.kv_tokens,
                "num_processes": self.num_processes,
            },
            summary=summarise(
                records, run_totals(line, duration_s=duration_s, time_scale=scale, slots=slots)
            ),
            sessions=records,
            replay=assess(
                fleet.lags_s,
                host,
                time_scale=scale,
                engine_late_s=sample.late_s if sample else None,
                engine_busy_s=sample.busy_s if sample else None,
                events_dropped=line.fold.counters.events_dropped if line else 0,
                complaints=complaints,
            ),
            environment=environment(),
        )
        write_result(folder / "result.json", result)
        return Outcome(contestant, result, line, folder)

    def _close(self, lead: str, outcomes: Sequence[Outcome]) -> None:
        """Table, speed-ups, report."""
        runs = [Run(o.contestant.label, o.result) for o in outcomes]
        self.console.print(comparison(runs))
        for run in runs[1:]:
            self.console.print(speed_up_text(run, runs[0]), style="bold", highlight=False)
        (self.out / "table.md").write_text(markdown(runs), encoding="utf-8")
        plotted = [PlottedRun(o.contestant.label, o.result, o.timeline) for o in outcomes]
        command = ["mars", *sys.argv[1:]]
        title = self.experiment.scenario.title
        path = write_report(self.out, plotted, title=title, lead=lead, command=command)
        self.console.print(f"Report: {path}", highlight=False, soft_wrap=True)


def _fill(records: Sequence[SessionRecord], line: Timeline, seed: int) -> None:
    """Add what engine and tool server saw, under the ids of the conversations."""
    names = [record.session_id for record in records]
    for record in records:
        record.session_id = conversation_id(record.session_id, seed)
    fill_records(records, line)
    for record, name in zip(records, names, strict=True):
        line.spans[name] = line.spans.pop(record.session_id, [])
    views = {v.session_id: v for v in [*line.fold.ended.values(), *line.fold.sessions.values()]}
    for name, record in zip(names, records, strict=True):
        view = views.get(record.session_id)
        if view is not None:
            record.num_turns, record.num_tool_calls = view.num_turns, len(view.tools)
            record.prompt_tokens = sum(turn.num_prompt_tokens for turn in view.turns)
            record.output_tokens = sum(turn.num_output_tokens for turn in view.turns)
        record.session_id = name


def _timeline(path: Path, started_at: float, scale: float) -> Timeline | None:
    if not started_at or not path.exists():
        return None
    events = (event for event in read_events(path) if event.time >= started_at)
    return build_timeline(events, started_at=started_at, time_scale=scale)
