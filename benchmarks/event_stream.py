# SPDX-License-Identifier: Apache-2.0
"""Events per second through the stream. Budget: 50,000 through bus and fold.

Run: ``python benchmarks/event_stream.py [--sessions 2000] [--turns 20]``. Prints the
median of five rounds of each stage: bus and fold; from an engine's publisher over ZMQ
into both; codec both ways; the log.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mars.config import EngineConfig
from mars.core import events as ev
from mars.telemetry import Bus, Fold, JsonlSink, Record, read_events
from mars.telemetry.codec import decode_batch, encode_batch
from mars.telemetry.engine_link import EngineLink
from mars.telemetry.subscriber import EventSubscriber, ReplayClient

BUDGET = 50_000
ROUNDS = 5


def session(session_id: str, start: float, num_turns: int) -> Iterator[ev.Event]:
    """One session as gateway, engine and tool pool report it."""
    name = {"session_id": session_id}
    yield ev.SessionArrived(time=start, **name)
    yield ev.SessionAdmitted(time=start, held_s=0.0, mode="fcfs", num_active=1, **name)
    for turn in range(num_turns):
        at, request_id = start + 10.0 * turn, f"{session_id}-{turn}"
        turn_name = {"request_id": request_id, "turn_index": turn} | name
        yield ev.TurnSubmitted(
            time=at, num_prompt_tokens=9000, projected_kv_blocks=600, **turn_name
        )
        yield ev.TurnStarted(time=at + 1, num_cached_tokens=8000, queue_s=1.0, **turn_name)
        yield ev.FirstToken(time=at + 2, ttft_s=2.0, **turn_name)
        yield ev.TurnFinished(
            time=at + 4,
            num_prompt_tokens=9000,
            num_output_tokens=120,
            num_cached_tokens=8000,
            num_recomputed_tokens=0,
            num_preemptions=0,
            freed_blocks=0,
            retained_blocks=570,
            finish_reason="stop",
            **turn_name,
        )
        call = {"tool_call_id": f"call-{turn}", "tool_name": "bash"} | name
        yield ev.ToolQueued(time=at + 5, **call)
        yield ev.ToolStarted(time=at + 6, queued_s=1.0, **call)
        yield ev.ToolFinished(
            time=at + 8, duration_s=2.0, cpu_seconds=1.0, peak_bytes=1, exit_code=0, **call
        )
    yield ev.SessionEnded(time=start + 10.0 * num_turns, reason="explicit", **name)


def rate(count: int, work: Callable[[], object]) -> float:
    """Median events per second over the rounds."""
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates)


def bus_and_fold(events: list[ev.Event]) -> None:
    """The gateway's path: publish, fold, and a reader that keeps up."""
    bus, fold = Bus(), Fold(keep_history=False, keep_ended=1000, keep_samples=1000)
    reader = bus.reader()
    for event in events:
        bus.publish(event, "engine")
        fold.apply(event)
        if bus.last_seq % 256 == 0:
            reader.read(256)
    assert bus.num_dropped == 0
    assert fold.counters.num_events == len(events)


async def over_zmq(events: list[ev.Event]) -> None:
    """The whole way: an engine's publisher in a thread, and the gateway's reader here."""
    with tempfile.TemporaryDirectory(prefix="mars-") as folder:
        config = EngineConfig(
            events_endpoint=f"ipc://{folder}/events", control_endpoint=f"ipc://{folder}/control"
        )
        link = EngineLink(config)
        replay = ReplayClient(f"ipc://{folder}/control")
        subscriber = EventSubscriber(f"ipc://{folder}/events", replay=replay)
        bus, fold = Bus(), Fold(keep_history=False, keep_ended=1000, keep_samples=1000)
        try:
            await _heard(link, subscriber)
            sending = asyncio.create_task(asyncio.to_thread(_publish, link, events))
            while fold.counters.num_events < len(events):
                for record in await subscriber.receive():
                    if isinstance(record.event, ev.EngineJoined | ev.ChunkShrunk):
                        continue
                    bus.publish(record.event, record.source)
                    fold.apply(record.event)
            await sending
            assert subscriber.num_lost == 0
        finally:
            subscriber.close()
            link.close()


async def _heard(link: EngineLink, subscriber: EventSubscriber) -> None:
    """Publish until the subscription is there: PUB forgets what nobody hears."""
    nothing = ev.ChunkShrunk(
        time=0.0, session_id="s", request_id="r", wanted_tokens=1, granted_tokens=1
    )
    hearing = asyncio.ensure_future(subscriber.receive())
    while not hearing.done():
        link.emit(nothing)
        link.flush()
        await asyncio.wait((hearing,), timeout=0.01)


def _publish(link: EngineLink, events: list[ev.Event]) -> None:
    for start in range(0, len(events), 64):
        for event in events[start : start + 64]:
            link.emit(event)
        link.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    events = [
        event
        for i in range(options.sessions)
        for event in session(f"s{i}", float(i), options.turns)
    ]
    records = [Record(i, "engine", event) for i, event in enumerate(events, start=1)]
    batches = [records[i : i + 64] for i in range(0, len(records), 64)]
    payloads = [encode_batch(batch) for batch in batches]
    print(f"{len(events)} events, median of {ROUNDS} rounds")
    through = rate(len(events), lambda: bus_and_fold(events))
    verdict = "within" if through >= BUDGET else "BELOW"
    print(f"bus and fold   {through:>10,.0f} events/s   {verdict} the budget of {BUDGET:,}")
    whole = rate(len(events), lambda: asyncio.run(over_zmq(events)))
    print(f"over ZMQ too   {whole:>10,.0f} events/s   publisher and reader share this process")
    encode = rate(len(events), lambda: [encode_batch(batch) for batch in batches])
    print(f"msgpack encode {encode:>10,.0f} events/s")
    decode = rate(len(events), lambda: [decode_batch(payload) for payload in payloads])
    print(f"msgpack decode {decode:>10,.0f} events/s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"

        def write() -> None:
            path.unlink(missing_ok=True)
            sink = JsonlSink(path)
            for batch in batches:
                sink.write(batch)
            sink.close()

        print(f"log write      {rate(len(events), write):>10,.0f} events/s")
        read = rate(len(events), lambda: sum(1 for _ in read_events(path)))
        print(f"log read       {read:>10,.0f} events/s")


if __name__ == "__main__":
    main()
