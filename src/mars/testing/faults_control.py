# SPDX-License-Identifier: Apache-2.0
"""Faults of the control plane, its log and its clock."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from mars.core import events as ev
from mars.telemetry import read_records
from mars.testing.faults import Outcome, books, engine_events
from mars.testing.site import POLL_S, TIMEOUT_S, Reply, Site, site

PACED = ("--token-interval-s", "0.01", "--num-tokens", "10")


class Agent:
    """An agent that sends no session id: three turns with a tool call between them.

    What tells its session is the tool-call id that it echoes, as real agents do.
    """

    def __init__(self, made: Site, name: str, *, is_named: bool, num_turns: int = 3) -> None:
        self._site = made
        self.name = name
        self.is_named = is_named
        self.num_turns = num_turns
        self.replies: list[Reply] = []
        self.turns_done = 0

    async def run(self) -> None:
        """All turns; each is sent again until it is answered whole."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"task {self.name}"}]
        for turn in range(self.num_turns):
            is_last = turn == self.num_turns - 1
            call_id = f"call-{self.name}-{turn}"
            tools = [] if is_last else [{"id": call_id, "name": "bash"}]
            self.replies += await self._site.chat_until_served(
                self.name if self.is_named else None, messages=messages, fake_tools=tools
            )
            self.turns_done += 1
            call = {"id": call_id, "type": "function", "function": {"name": "bash"}}
            messages.append({"role": "assistant", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": call_id, "content": "ok"})
            await asyncio.sleep(POLL_S)


async def gateway_killed(folder: Path, num_agents: int = 8) -> Outcome:
    """SIGKILL the gateway with agents in turns, in tools and held; start it again.

    Half of the agents send a session id; the others are known by what they echo. The
    engine lives on and ends the turns whose connections broke; what it tells while nobody
    listens is replayed from its ring.
    """
    out = Outcome(f"control plane killed (SIGKILL) under {num_agents} live agents, restarted")
    async with site(folder, engine=PACED, admission=f"cap:{num_agents}") as made:
        agents = [Agent(made, f"a{i}", is_named=i % 2 == 0, num_turns=8) for i in range(num_agents)]
        running = [asyncio.create_task(agent.run()) for agent in agents]
        late = Agent(made, "held", is_named=True)
        await made.until(lambda s: s["num_active"] == num_agents)
        running.append(asyncio.create_task(late.run()))
        await made.until(lambda s: s["num_held"] == 1)
        await _turns_done(agents, 2 * num_agents)
        before = await made.state()
        await made.kill_gateway()
        await made.until_engine(lambda e: e["num_finished"] + e["num_cancelled"] == len(e["seen"]))
        await made.start_gateway()
        restored = await made.state()
        named = [a for a in agents if a.replies and a.is_named]
        await asyncio.gather(*running[:num_agents])
        for agent in named:
            await made.end(agent.name)
        await running[num_agents]
        engine = await made.engine_state()
        turns = Counter(name for name in engine["seen"] if name)
        records = await made.until_logged(
            lambda r: engine_events(r)["turn_finished"] == len(engine["seen"])
        )
    everybody = [*agents, late]
    out.saw(reply for agent in everybody for reply in agent.replies)
    arrived = {r.event.session_id for r in records if isinstance(r.event, ev.SessionArrived)}
    out.lost = {
        "sessions_lost": max(0, before["num_active"] - restored["num_active"]),
        "places_lost": max(0, before["num_held"] - restored["num_held"]),
        "sessions_begun_anew": len(arrived) - len(everybody),
        "turns_never_served": sum(a.num_turns - a.turns_done for a in everybody),
        "engine_turns_not_in_the_log": len(engine["seen"])
        - engine_events(records)["turn_submitted"],
        **books(records),
    }
    out.noted = {
        "active_before": before["num_active"],
        "active_restored": restored["num_active"],
        "held_restored": restored["num_held"],
        "sessions_in_the_engine": len(turns),
    }
    return out


async def _turns_done(agents: list[Agent], count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if sum(agent.turns_done for agent in agents) >= count:
                return
            await asyncio.sleep(POLL_S)


async def clock_jumps(folder: Path) -> Outcome:
    """The wall clock jumps a day on and back, with sessions active and held."""
    out = Outcome("wall clock jumps one day on, then back, then the control plane is restarted")
    async with site(folder, admission="cap:1", idle_session_s=60.0) as made:
        out.saw([await made.chat("active")])
        waiting = asyncio.create_task(made.chat("held"))
        await made.until(lambda s: s["num_held"] == 1)
        alarms: list[str] = []
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            made.signal_gateway(signum)
            told = (await made.state())["last_seq"]
            state = await made.until(lambda s, told=told: s["last_seq"] > told + 4)
            alarms += state["alarms"]
        made.signal_gateway(signal.SIGUSR1)
        out.saw([await made.chat("active")])
        before = await made.state()
        await made.kill_gateway()
        await asyncio.gather(waiting)
        await made.start_gateway()  # its wall clock is a day behind the old one's
        restored = await made.state()
        again = asyncio.create_task(made.chat("held"))
        await made.until(lambda s: not any(h["is_away"] for h in s["held"]))
        await made.end("active")
        out.saw([waiting.result(), await again])
        records = made.records()
    out.lost = {
        "sessions_lost": before["num_active"] - restored["num_active"],
        "places_lost": before["num_held"] - restored["num_held"],
        "false_alarms": len(alarms),
        "sessions_ended_by_the_jump": sum(
            isinstance(r.event, ev.SessionEnded) and r.event.reason != "explicit" for r in records
        ),
        **books(records),
    }
    return out


async def full_disk(folder: Path, num_sessions: int = 20) -> Outcome:
    """The event log hits a full disk (a file-size limit), and later there is room again."""
    out = Outcome("disk of the event log full (RLIMIT_FSIZE), then room again")
    async with site(folder) as made:
        out.saw([await made.chat("before")])
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] == 1)
        assert made.gateway is not None
        full = made.log.stat().st_size + 500
        limits = resource.prlimit(made.gateway.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(made.gateway.pid, resource.RLIMIT_FSIZE, (full, limits[1]))
        names = [f"s{i}" for i in range(num_sessions)]
        out.saw(await asyncio.gather(*(made.chat(name) for name in names)))
        during = await made.until(lambda s: s["counters"]["events_dropped"] > 0)
        resource.prlimit(made.gateway.pid, resource.RLIMIT_FSIZE, limits)
        out.saw([await made.chat("after")])
        records = await made.until_logged(
            lambda rs: any(
                isinstance(r.event, ev.SessionArrived) and r.event.session_id == "after" for r in rs
            )
        )
        state = await made.state()
    told = [r.event.count for r in records if isinstance(r.event, ev.EventsDropped)]
    out.lost = {"sessions_lost": num_sessions + 2 - state["num_active"], **books(records)}
    out.noted = {
        "told_in_the_log": sum(told),
        "told_in_the_state": state["counters"]["events_dropped"],
        "lost_while_full": during["counters"]["events_dropped"],
    }
    return out


async def log_rotated(folder: Path, num_sessions: int = 5) -> Outcome:
    """The log is moved away under the running gateway, which is killed later."""
    out = Outcome("event log rotated (moved away), then the control plane killed and restarted")
    names = [f"s{i}" for i in range(num_sessions)]
    async with site(folder) as made:
        out.saw(await asyncio.gather(*(made.chat(name) for name in names)))
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] == num_sessions)
        old = folder / "events.1.jsonl"
        made.log.rename(old)
        await made.until_logged(
            lambda rs: sum(isinstance(r.event, ev.SessionCarried) for r in rs) == num_sessions
        )
        before = await made.state()
        await made.kill_gateway()
        await made.start_gateway()
        restored = await made.state()
        out.saw(await asyncio.gather(*(made.chat(name) for name in names)))
        after = await made.state()
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] == num_sessions)
        records = [*read_records(old), *made.records()]
    out.lost = {
        "sessions_lost": before["num_active"] - restored["num_active"],
        "engine_turns_lost": 2 * num_sessions - engine_events(records)["turn_finished"],
        **books(records),
    }
    out.noted = {
        "turns_of_each": sorted({s["num_turns"] for s in after["active"]}),
        "schema": msgspec.json.decode(made.log.read_bytes().split(b"\n", 1)[0])["schema"],
    }
    return out
