# SPDX-License-Identifier: Apache-2.0
"""Faults of the engine and of what lies between it and the gateway."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from mars.core import events as ev
from mars.testing.faults import Outcome, books, engine_events
from mars.testing.server import free_port
from mars.testing.site import POLL_S, Site, site

SLOW = ("--token-interval-s", "0.02", "--num-tokens", "20")


async def engine_killed_in_turns(folder: Path, num_sessions: int = 8) -> Outcome:
    """SIGKILL the engine while every session streams; agents send their turns again."""
    out = Outcome(f"engine killed (SIGKILL) in the middle of {num_sessions} turns, restarted")
    names = [f"s{i}" for i in range(num_sessions)]
    async with site(folder, engine=SLOW) as made:
        turns = [asyncio.create_task(made.chat(name, max_tokens=100_000)) for name in names]
        await made.until_engine(lambda e: len(e["seen"]) == num_sessions)
        await made.until(lambda s: s["num_open_turns"] == num_sessions)
        await made.kill_engine()
        out.saw(await asyncio.gather(*turns))
        down = asyncio.create_task(made.chat(names[0]))  # its agent sends it at once again
        stale = await made.until(lambda s: s["is_stale"])
        await made.start_engine(*SLOW)
        fresh = await made.until(lambda s: not s["alarms"])
        out.saw([await down])
        again = await asyncio.gather(*(made.chat_until_served(name) for name in names))
        out.saw(reply for replies in again for reply in replies)
        state = await made.until(lambda s: not any(a["phase"] in _IN_TURN for a in s["active"]))
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] >= num_sessions)
        records = made.records()
    out.lost = {
        "sessions_lost": num_sessions - state["num_active"],
        "turns_never_served": sum(not replies[-1].is_whole for replies in again),
        "turns_left_open": sum(s["phase"] in _IN_TURN for s in state["active"]),
        **books(records),
    }
    out.noted = {
        "engine_restarts": state["counters"]["engine_restarts"],
        "alarms_while_down": len(stale["alarms"]),
        "alarms_after": len(fresh["alarms"]),
        "generations": sorted({s["generation"] for s in state["active"]}),
    }
    return out


_IN_TURN = frozenset({"queue", "prefill", "decode"})


async def engine_killed_between_turns(folder: Path, num_sessions: int = 4) -> Outcome:
    """SIGKILL the engine while all sessions act; their next turns come after the restart."""
    out = Outcome(
        f"engine killed (SIGKILL) between the turns of {num_sessions} sessions, restarted"
    )
    names = [f"s{i}" for i in range(num_sessions)]
    async with site(folder) as made:
        out.saw(await asyncio.gather(*(made.chat(name) for name in names)))
        await made.kill_engine()
        await made.until(lambda s: s["is_stale"])
        await made.start_engine()
        await made.until(lambda s: not s["is_stale"])
        out.saw(await asyncio.gather(*(made.chat(name) for name in names)))
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] == 2 * num_sessions)
        state, records = await made.state(), made.records()
    out.lost = {
        "sessions_lost": num_sessions - state["num_active"],
        "engine_events_lost": state["counters"]["events_dropped"],
        **books(records),
    }
    out.noted = {
        "engine_restarts": state["counters"]["engine_restarts"],
        "turns_of_each": sorted({s["num_turns"] for s in state["active"]}),
    }
    return out


async def engine_stopped(folder: Path, num_waiting: int = 3) -> Outcome:
    """SIGSTOP the engine: sockets stay open, nothing comes. Admission freezes, then goes on."""
    out = Outcome("engine stalls (SIGSTOP), then goes on (SIGCONT)")
    async with site(folder, engine=SLOW, admission="cap:2") as made:
        running = [asyncio.create_task(made.chat(f"run{i}", max_tokens=40)) for i in range(2)]
        await made.until_engine(lambda e: len(e["seen"]) == 2)
        fresh = await made.until(lambda s: s["load"]["num_running"] == 2)
        made.signal_engine(signal.SIGSTOP)
        waiting = [asyncio.create_task(made.chat(f"wait{i}")) for i in range(num_waiting)]
        stale = await made.until(lambda s: s["is_stale"] and s["num_held"] == num_waiting)
        made.signal_engine(signal.SIGCONT)
        after = await made.until(lambda s: not s["alarms"])
        out.saw(await asyncio.gather(*running))
        await made.end("run0")
        for i in range(num_waiting):
            out.saw([await waiting[i]])
            await made.end(f"wait{i}")
        state = await made.state()
        await made.until_logged(lambda r: engine_events(r)["turn_finished"] == 2 + num_waiting)
        records = made.records()
    out.lost = {
        "held_sessions_lost": num_waiting - sum(t.result().is_whole for t in waiting),
        "engine_events_lost": state["counters"]["events_dropped"],
        **books(records),
    }
    out.noted = {
        "states": [s["load"]["num_running"] for s in (fresh, stale)],
        "alarm": stale["alarms"][0],
        "alarms_after": len(after["alarms"]),
    }
    return out


async def gateway_stopped_in_a_burst(folder: Path, num_events: int = 40_000) -> Outcome:
    """SIGSTOP the gateway while the engine publishes: queues overflow; the ring has the rest."""
    out = Outcome(f"gateway stalls (SIGSTOP) while the engine publishes {num_events:,} events")
    async with site(folder) as made:
        out.saw([await made.chat("before")])
        made.signal_gateway(signal.SIGSTOP)
        await made.burst(num_events)
        made.signal_gateway(signal.SIGCONT)
        await made.burst(1)  # shows the gap, if there is one
        out.saw([await made.chat("after")])
        await _settled(made)
        state = await made.state()
        await made.until_logged(lambda r: r[-1].seq >= state["last_seq"])
        records = made.records()
    came = engine_events(records)["chunk_shrunk"]
    told = sum(
        r.event.count
        for r in records
        if isinstance(r.event, ev.EventsDropped) and r.event.source == "engine"
    )
    out.lost = {"lost_without_a_word": num_events + 1 - came - told, **books(records)}
    replayed = state["engine_links"][0]["num_replayed"]
    out.noted = {
        "published": num_events + 1,
        "came": came,
        "of_them_replayed": replayed,
        "told_lost": told,
    }
    return out


async def _settled(made: Site) -> None:
    """Return when the gateway has read all that was published: its last sample is new."""
    before = await made.state()
    while True:
        await asyncio.sleep(POLL_S * 20)
        after = await made.state()
        if after["counters"]["num_events"] - before["counters"]["num_events"] < 100:
            return
        before = after


async def ranks(folder: Path) -> Outcome:
    """Two data-parallel ranks; one is killed and comes back, the other goes on."""
    out = Outcome("one of two data-parallel ranks killed (SIGKILL), restarted")
    async with site(folder, telemetry={"engine_ranks": 2}) as made:
        first, made.engine = made.engine, None
        port, made.engine_port = made.engine_port, free_port()
        try:
            await made.start_engine(rank=1)
            both = await made.until(lambda s: s["load"]["kv_blocks_total"] == 2000)
            await made.kill_engine()
            stale = await made.until(lambda s: s["is_stale"])
            out.saw([await made.chat("s")])
            await made.start_engine(rank=1)
            after = await made.until(lambda s: not s["alarms"])
            await made.kill_engine()
        finally:
            made.engine, made.engine_port = first, port
        records = made.records()
    out.lost = {"engine_events_lost": after["counters"]["events_dropped"], **books(records)}
    out.noted = {
        "kv_blocks": both["load"]["kv_blocks_total"],
        "alarm": stale["alarms"][0],
        "sources": sorted({r.source for r in records if r.source.startswith("engine")}),
    }
    return out
