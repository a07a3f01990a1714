# SPDX-License-Identifier: Apache-2.0
"""Runs the agents, batch by batch, and makes their rows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mars.bench.agents.bed import POLL_S, Bed
from mars.bench.agents.clients import Client, command_of, path_of
from mars.bench.agents.rows import Row, Run, fill_main, markdown, survived
from mars.bench.agents.tap import TappedRequest
from mars.bench.agents.tasks import mark, task, workspace, write_scripts
from mars.telemetry.sink import read_events

LIMIT_S = 900.0
"""For one agent and one task: several times what any needs, with an engine's start in it."""
ARRIVE_S = 240.0
"""For an agent to come to the point where it is disturbed."""
SESSIONS_EACH = 3
"""Sessions that one agent may need at once (side calls that nothing attributes)."""
DOWN_S = 5.0
"""How long the engine is gone before the tools may end: every agent meets its absence."""
IN_REPLY_S = 3.0
MAX_WORDS_CHARS = 100
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXAMPLE_TEST = "grep -q Zeile poem.txt"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """How to try them.

    Attributes:
        clients: which agents.
        out: folder for workspaces, logs, and the table.
        hold_s: how long each one's first request is held.
        at_once: agents that run at the same time.
        restarts: also kill the engine under them.
        port: where the gateway listens; 0: a free port.
        say: takes a line on what goes on.
    """

    clients: Sequence[Client]
    out: Path
    hold_s: float
    at_once: int
    restarts: bool
    port: int
    say: Say

    async def run(self) -> list[Row]:
        """Run all of them; the table is written again after each batch."""
        self.out.mkdir(parents=True, exist_ok=True)
        scripts = self.out / "scripts.jsonl"
        write_scripts(scripts, self.out.resolve(), list(self.clients))
        rows: list[Row] = []
        bed = Bed(self.out, scripts, self.port)
        self.say("starting the engine")
        async with bed.running():
            for start in range(0, len(self.clients), self.at_once):
                batch = _Batch(self, bed, self.clients[start : start + self.at_once])
                rows += await batch.run()
                self._write(rows)
        return rows

    def _write(self, rows: Sequence[Row]) -> None:
        (self.out / "agents.md").write_text(markdown(rows), encoding="utf-8")
        text = msgspec.json.format(msgspec.json.encode(list(rows)), indent=1)
        (self.out / "agents.json").write_bytes(text + b"\n")


class _Batch:
    """Some agents at the same time, through all phases."""

    def __init__(self, trial: Trial, bed: Bed, clients: Sequence[Client]) -> None:
        self._trial = trial
        self._bed = bed
        self._clients = clients
        self._too_late: set[str] = set()
        self._rows = {
            c.name: Row(name=c.name, title=c.title, version=c.version, api=c.api) for c in clients
        }

    async def run(self) -> list[Row]:
        names = ", ".join(client.title for client in self._clients)
        self._trial.say(f"{names}: the task, held for {self._trial.hold_s:g} s")
        await self._main()
        if self._trial.restarts:
            self._trial.say("the same, the engine killed while their tools run")
            runs = await self._disturbed("tool", self._in_tool)
            for client in self._clients:
                work = workspace(self._trial.out, client, "tool")
                if client.calls_tools:
                    outcome = survived(client, runs[client.name], work)
                    if client.name in self._too_late:
                        outcome = "not tried: it was over by then"
                    self._rows[client.name].restart_in_tool = outcome
            self._trial.say("the same, the engine killed in the middle of a reply")
            runs = await self._disturbed("reply", self._in_reply)
            for client in self._clients:
                work = workspace(self._trial.out, client, "reply")
                outcome = survived(client, runs[client.name], work)
                if outcome.startswith("yes") and len(self._long_replies(client)) < 2:
                    outcome = "not tried: its reply was over by then"
                self._rows[client.name].restart_in_reply = outcome
        return list(self._rows.values())

    async def _main(self) -> None:
        bed, trial = self._bed, self._trial
        num_sessions = SESSIONS_EACH * len(self._clients)
        events = trial.out / f"events-{self._clients[0].name}.jsonl"
        events.unlink(missing_ok=True)  # it is appended to
        first = len(bed.tap.requests)
        async with bed.gateway(events, f"cap:{num_sessions}"):
            async with bed.full(num_sessions):
                running = {
                    c.name: asyncio.create_task(self._agent(c, "main")) for c in self._clients
                }
                await _until(lambda: self._all_held(running), ARRIVE_S)
                await asyncio.sleep(trial.hold_s)
            runs = {name: await task_ for name, task_ in running.items()}
        seen: list[TappedRequest] = [r for r in bed.tap.requests[first:] if r.method == "POST"]
        happened = list(read_events(events))
        for client in self._clients:
            work = workspace(trial.out, client, "main")
            row = self._rows[client.name]
            fill_main(row, client, runs[client.name], work, seen, happened)

    async def _all_held(self, running: dict[str, asyncio.Task[Run]]) -> bool:
        num_alive = sum(not task_.done() for task_ in running.values())
        return await self._bed.num_held() >= num_alive

    async def _disturbed(
        self, phase: str, is_there: Callable[[Client], Awaitable[bool]]
    ) -> dict[str, Run]:
        """Kill the engine when every agent is at the point, and start a new one."""
        bed = self._bed
        events = self._trial.out / f"events-{self._clients[0].name}-{phase}.jsonl"
        async with bed.gateway(events):
            running = {c.name: asyncio.create_task(self._agent(c, phase)) for c in self._clients}

            async def all_there() -> bool:
                return all([running[c.name].done() or await is_there(c) for c in self._clients])

            await _until(all_there, ARRIVE_S)
            self._too_late = {name for name, task_ in running.items() if task_.done()}
            await bed.kill_engine()
            await asyncio.sleep(DOWN_S)
            for client in self._clients:
                (workspace(self._trial.out, client, phase) / "go").touch()
            await bed.start_engine()
            self._trial.say("the new engine is ready")
            return {name: await task_ for name, task_ in running.items()}

    async def _in_tool(self, client: Client) -> bool:
        work = workspace(self._trial.out, client, "tool")
        return not client.calls_tools or (work / "started").exists()

    async def _in_reply(self, client: Client) -> bool:
        late = time.monotonic() - IN_REPLY_S
        return any(request.at < late for request in self._long_replies(client))

    def _long_replies(self, client: Client) -> list[TappedRequest]:
        """Requests for the long reply; a second one is a client that asks again."""
        step = mark(client, "reply")
        asked = f"{step}:0]]" if client.calls_tools else f"{step}]]"
        told = f"{step}:1]]" if client.calls_tools else f"{step}:0]]"
        return [
            r
            for r in self._bed.tap.requests
            if asked.encode() in r.body and told.encode() not in r.body
        ]

    async def _agent(self, client: Client, phase: str) -> Run:
        """One agent, from an empty workspace and an empty home."""
        work = workspace(self._trial.out, client, phase)
        shutil.rmtree(work.parent, ignore_errors=True)
        home, log = work.parent / "home", work.parent / "agent.log"
        for folder in (work, home):
            folder.mkdir(parents=True)
        environment = {
            "PATH": path_of(client),
            "HOME": str(home.resolve()),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "SHELL": "/bin/bash",
            "MARS_URL": self._bed.url,
            "MARS_MODEL": self._bed.profile.model,
            "MARS_TOOLS": str(self._bed.tools),
            "TEST_COMMAND": _EXAMPLE_TEST,
        }
        began = time.monotonic()
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command_of(client, task(client, phase)),
                cwd=work,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        code = None
        try:
            code = await asyncio.wait_for(process.wait(), LIMIT_S)
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        duration_s = time.monotonic() - began
        self._trial.say(f"  {client.title}: exit code {code} after {duration_s:.0f} s")
        return Run(exit_code=code, last_words=_last_words(log), duration_s=duration_s)


async def _until(is_so: Callable[[], Awaitable[bool]], limit_s: float) -> None:
    """Wait for something that some agent may never come to."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if await is_so():
            return
        await asyncio.sleep(POLL_S)


def _last_words(log: Path) -> str:
    lines = [_COLOUR.sub("", line).strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if any(c.isalnum() for c in line)]
    return said[-1][:MAX_WORDS_CHARS] if said else "it said nothing"
