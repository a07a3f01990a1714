# SPDX-License-Identifier: Apache-2.0
"""What an injected fault did: what clients saw, and what was lost. The books of a log.

The faults themselves are in :mod:`mars.testing.faults_engine`, ``faults_control`` and
``faults_clients``; tests assert on their outcomes, ``benchmarks/faults.py`` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mars.core import events as ev
from mars.telemetry import Record
from mars.testing.site import Reply


@dataclass(slots=True)
class Outcome:
    """One line of the fault table."""

    fault: str
    clients_saw: Counter[str] = field(default_factory=Counter[str])
    """Replies in words, and how many."""
    lost: dict[str, int] = field(default_factory=dict[str, int])
    """What must be zero, by name."""
    noted: dict[str, Any] = field(default_factory=dict[str, Any])
    """Counts that tell that the fault took place, and how it was told."""

    def saw(self, replies: Iterable[Reply]) -> None:
        """Count what clients got."""
        self.clients_saw.update(reply.in_words() for reply in replies)

    @property
    def is_nothing_lost(self) -> bool:
        """Whether all that must be zero is."""
        return not any(self.lost.values())


def books(records: list[Record]) -> dict[str, int]:
    """What a log lacks or has twice; each must be zero.

    ``unexplained_gaps`` are records missing from the numbering of which no
    ``events_dropped`` tells; ``sessions_doubled`` arrived twice without an end in between.
    """
    numbered = [r.seq for r in records if not _is_told_loss(r)]
    told = sum(
        r.event.count for r in records if isinstance(r.event, ev.EventsDropped) and _is_told_loss(r)
    )
    missing = sum(max(0, b - a - 1) for a, b in pairwise(numbered))
    repeated = sum(b <= a for a, b in pairwise(numbered))
    alive: set[str] = set()
    doubled = 0
    for record in records:
        event = record.event
        if isinstance(event, ev.SessionArrived):
            doubled += event.session_id in alive
            alive.add(event.session_id)
        elif isinstance(event, ev.SessionEnded):
            alive.discard(event.session_id)
    return {
        "sessions_doubled": doubled,
        "unexplained_gaps": missing - told,
        "numbers_repeated": repeated,
    }


def _is_told_loss(record: Record) -> bool:
    """Whether a record stands in for others that the log itself lacks."""
    event = record.event
    return isinstance(event, ev.EventsDropped) and event.source in {"log", "bus"}


def engine_events(records: list[Record]) -> Counter[str]:
    """Kinds of the engine's own events in a log."""
    return Counter(r.event.kind for r in records if r.source.startswith("engine"))
