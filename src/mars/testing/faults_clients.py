# SPDX-License-Identifier: Apache-2.0
"""Faults of clients: slow, half gone, talking nonsense, or ten thousand of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from mars.testing.faults import Outcome, books
from mars.testing.site import FAILURES, TIMEOUT_S, Reply, Site, site

REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: mars\r\nX-Session-ID: %s\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
NONSENSE: dict[str, bytes] = {
    "not JSON": b"{not json",
    "not UTF-8": b'{"messages": "\xff\xfe"}',
    "another type": b"[1, 2, 3]",
    "wrong field types": b'{"messages": 7, "stream": "maybe", "max_tokens": []}',
    "deep nesting": b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep content": b'{"messages": [{"role": "user", "content": '
    + b"[" * 50_000
    + b"]" * 50_000
    + b"}]}",
    "empty": b"",
    "huge number": b'{"messages": [], "max_tokens": 1e400}',
    "null": b"null",
}
GARBAGE = (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\x00" * 1000)


async def held_sessions(folder: Path, num_sessions: int = 2_000, cap: int = 50) -> Outcome:
    """So many sessions at once, each with its connection open; all but ``cap`` are held.

    They send no id and take one turn, so that each makes room for the next when it ends.
    """
    out = Outcome(f"{num_sessions:,} sessions at once, {cap} of them admitted at a time")
    async with site(folder, admission=f"cap:{cap}", engine=("--num-tokens", "2")) as made:
        await made.chat("warm-up")
        await made.end("warm-up")
        bytes_before = made.gateway_bytes()
        gate = [f"gate{i}" for i in range(cap)]
        await asyncio.gather(*(made.chat(name) for name in gate))  # active: nobody else is let in
        waiting = [asyncio.create_task(made.chat()) for _ in range(num_sessions)]
        patience_s = TIMEOUT_S + num_sessions / 20
        full = await made.until(lambda s: s["num_held"] == num_sessions, patience_s)
        bytes_held = made.gateway_bytes()
        started = time.monotonic()
        probe = await made.chat(gate[0])  # a turn of an active session is not in their way
        probe_s = time.monotonic() - started
        for name in gate:
            await made.end(name)
        replies = await asyncio.gather(*waiting)
        served_s = time.monotonic() - started
        out.saw([probe, *replies])
        state = await made.until(lambda s: s["num_active"] == 0, patience_s)
        await made.until_logged(lambda r: r[-1].seq >= state["last_seq"])
        records = made.records()
    out.lost = {
        "sessions_never_served": sum(not reply.is_whole for reply in replies),
        "events_dropped": state["counters"]["events_dropped"],
        **books(records),
    }
    out.noted = {
        "held": full["num_held"],
        "kib_per_held_session": round((bytes_held - bytes_before) / 1024 / num_sessions, 1),
        "active_turn_meanwhile_s": round(probe_s, 3),
        "all_served_after_s": round(served_s, 1),
    }
    return out


async def slow_model_readers(folder: Path, num_slow: int = 6) -> Outcome:
    """Clients that open a long stream and do not read it; others must not notice."""
    out = Outcome(f"{num_slow} clients that do not read their long streams")
    num_tokens = 100_000
    async with site(folder, engine=("--num-tokens", "3")) as made:
        out.saw([await made.chat("other")])
        bytes_before = made.gateway_bytes()
        async with contextlib.AsyncExitStack() as stack:
            for i in range(num_slow):
                await stack.enter_async_context(_deaf(made, f"slow{i}", num_tokens))
            await made.until(lambda s: s["num_open_turns"] == num_slow)
            out.saw(await asyncio.gather(*(made.chat(f"other{i}") for i in range(20))))
            grown = made.gateway_bytes() - bytes_before
            in_flight = await made.engine_state()
        await made.until(lambda s: s["num_open_turns"] == 0)  # gone clients are noticed
        ended = await made.until_engine(lambda e: e["num_cancelled"] == num_slow)
        state = await made.state()
    out.lost = {"turns_left_open": state["num_open_turns"]}
    out.noted = {
        "gateway_grew_mib": round(grown / 2**20, 1),
        "bytes_of_the_streams_mib": round(num_slow * num_tokens * 60 / 2**20, 1),
        "engine_held_back": in_flight["num_finished"] < 21 + num_slow,
        "cancelled_in_the_engine": ended["num_cancelled"],
    }
    return out


@contextlib.asynccontextmanager
async def _deaf(made: Site, name: str, num_tokens: int) -> AsyncIterator[None]:
    """A client that asks for a stream and reads nothing of it."""
    body = msgspec.json.encode({"stream": True, "messages": [], "max_tokens": num_tokens})
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port, limit=1024)
    writer.write(REQUEST % (name.encode(), len(body)) + body)
    try:
        yield
    finally:
        await _gone(writer)
        del reader


async def slow_event_reader(folder: Path, num_events: int = 60_000) -> Outcome:
    """A subscriber of ``/mars/v1/events`` that stops reading while so many events pass."""
    out = Outcome(f"a subscriber that reads nothing while {num_events:,} events pass")
    async with site(folder, telemetry={"queue_events": 4096}) as made:
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{made.url}/mars/v1/events?since=0"
        async with made.client.get(url, timeout=timeout) as response:
            await response.content.readline()
            bytes_before = made.gateway_bytes()
            await made.burst(num_events)
            out.saw([await made.chat("other")])
            state = await made.until(lambda s: s["counters"]["turns_finished"] == 1)
            grown = made.gateway_bytes() - bytes_before
            came = told = last = 0
            while last < state["last_seq"]:
                line = await response.content.readline()
                if not line.startswith(b"data: "):
                    continue
                event = msgspec.json.decode(line.removeprefix(b"data: "))
                if event["kind"] == "events_dropped":
                    told += event["count"]
                else:
                    came += 1
                    last = event["seq"]
        async with made.client.get(f"{made.url}/mars/v1/events?since={last - 5}") as response:
            await response.content.readuntil(b"data: ")
            resumed = msgspec.json.decode(await response.content.readline())["seq"]
    out.lost = {
        "lost_without_a_word": last - came - told,
        "resumed_elsewhere": abs(resumed - (last - 4)),
    }
    out.noted = {"came": came, "told_lost": told, "gateway_grew_mib": round(grown / 2**20, 1)}
    return out


async def nonsense(folder: Path) -> Outcome:
    """Malformed bodies and garbage on the socket; the gateway goes on and counts no turn."""
    out = Outcome("malformed JSON, wrong types, deep nesting, garbage instead of HTTP")
    statuses: dict[str, int] = {}
    async with site(folder) as made:
        for name, body in NONSENSE.items():
            statuses[name] = await _post(made, "/v1/chat/completions", body)
            statuses[f"{name} (events)"] = await _post(made, "/mars/v1/events", body)
        for garbage in GARBAGE:
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(garbage)
            writer.write_eof()
            await reader.read()
            writer.close()
        out.saw([await made.chat("after")])
        state = await made.state()
        records = made.records()
    out.clients_saw.update(f"{status}" for status in statuses.values())
    out.lost = {
        "server_errors": sum(status >= 500 for status in statuses.values()),
        "turns_left_open": state["num_open_turns"],
        **books(records),
    }
    out.noted = {"500s": sorted(k for k, v in statuses.items() if v >= 500)}
    return out


async def _post(made: Site, path: str, body: bytes) -> int:
    headers = {"Content-Type": "application/json"}
    try:
        async with made.client.post(made.url + path, data=body, headers=headers) as response:
            await response.read()
            return response.status
    except FAILURES:
        return 0


async def _gone(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(*FAILURES):
        await writer.wait_closed()


async def half_open(folder: Path, num_sockets: int = 300) -> Outcome:
    """Connections that say nothing, half a head, or half a body, and then keep silent."""
    out = Outcome(f"{num_sockets} half-open connections: silent, half a head, half a body")
    parts = (b"", REQUEST[:40], REQUEST % (b"half", 1000) + b'{"messages"')
    async with site(folder) as made:
        async with contextlib.AsyncExitStack() as stack:
            for i in range(num_sockets):
                _, writer = await asyncio.open_connection("127.0.0.1", made.port)
                stack.push_async_callback(_gone, writer)
                writer.write(parts[i % len(parts)])
                await writer.drain()
            during: list[Reply] = await asyncio.gather(*(made.chat(f"s{i}") for i in range(20)))
            state = await made.state()
        out.saw(during)
        after = await made.until(lambda s: s["num_open_turns"] == 0)
        records = made.records()
    out.lost = {
        "sessions_made_up": state["num_active"] - 20,
        "turns_left_open": after["num_open_turns"],
        **books(records),
    }
    return out
