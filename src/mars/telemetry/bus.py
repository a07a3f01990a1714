# SPDX-License-Identifier: Apache-2.0
"""Bounded in-process fan-out: one ring of numbered records, any number of readers.

The writer appends and never waits. A reader keeps its own place; if the ring has moved
past it, the reader gets one ``events_dropped`` record that says how many it lost. The
same ring serves replay (``since``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

from mars.core.events import Event, EventsDropped
from mars.telemetry.codec import Record

DEFAULT_CAPACITY = 65536
"""Records kept for slow readers and replay; about 1 s at the stream budget (chosen)."""


class Bus:
    """The ring. Thread-safe for writers and readers.

    Args:
        capacity: records kept, at least 1.
        last_seq: number of the last record of an earlier life; numbering goes on.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY, *, last_seq: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"telemetry buffer must keep at least 1 record, not {capacity}")
        self._capacity = capacity
        self._ring: list[Record | None] = [None] * capacity
        self._born_at = self._next_seq = last_seq + 1
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self.num_dropped = 0
        """Records some reader lost, summed over readers."""

    @property
    def last_seq(self) -> int:
        """Number of the newest record; 0 before the first."""
        return self._next_seq - 1

    @property
    def first_seq(self) -> int:
        """Number of the oldest record still kept."""
        return max(self._born_at, self._next_seq - self._capacity)

    def publish(self, event: Event, source: str) -> Record:
        """Append one event; returns it with its number."""
        with self._lock:
            record = Record(self._next_seq, source, event)
            self._ring[self._next_seq % self._capacity] = record
            self._next_seq += 1
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()
        return record

    def publish_many(self, events: Iterable[Event], source: str) -> list[Record]:
        """Append several events of one source, in order."""
        return [self.publish(event, source) for event in events]

    def reader(self, since: int | None = None) -> Reader:
        """A reader of everything after number ``since`` (None: from now on)."""
        return Reader(self, self.last_seq if since is None else max(0, since))

    def wait_after(self, seq: int, wake: Callable[[], None]) -> bool:
        """Call ``wake`` once at the next record; False if one newer than ``seq`` is there."""
        with self._lock:
            if self._next_seq - 1 > seq:
                return False
            self._waiting.append(wake)
            return True

    def forget(self, wake: Callable[[], None]) -> None:
        """Take back a ``wake`` that was not called."""
        with self._lock:
            if wake in self._waiting:
                self._waiting.remove(wake)

    def copy(self, after: int, limit: int) -> tuple[int, list[Record]]:
        """How many records after ``after`` are lost, and up to ``limit`` that follow."""
        with self._lock:
            first = max(self._born_at, self._next_seq - self._capacity)
            start = max(after + 1, first)
            stop = min(self._next_seq, start + limit)
            found = [self._ring[seq % self._capacity] for seq in range(start, stop)]
            lost = start - (after + 1)
            self.num_dropped += lost
        return lost, [record for record in found if record is not None]


class Reader:
    """One reader's place in a :class:`Bus`; for use by one thread or task."""

    def __init__(self, bus: Bus, seq: int) -> None:
        self._bus = bus
        self.seq = seq
        """Number of the last record read."""
        self.num_dropped = 0

    def read(self, limit: int = 1024) -> list[Record]:
        """Up to ``limit`` new records, after an ``events_dropped`` if some were lost."""
        # A place from an earlier life of the stream counts as the newest one.
        self.seq = min(self.seq, self._bus.last_seq)
        lost, records = self._bus.copy(self.seq, limit)
        if not records:
            return []
        self.seq = records[-1].seq
        if lost:
            self.num_dropped += lost
            dropped = EventsDropped(time=records[0].event.time, count=lost, source="bus")
            records.insert(0, Record(records[0].seq - 1, "bus", dropped))
        return records

    async def wait(self) -> None:
        """Return when there is something to read."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_resolve, future)

        if not self._bus.wait_after(self.seq, wake):
            return
        try:
            await future
        finally:
            self._bus.forget(wake)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
