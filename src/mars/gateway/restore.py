# SPDX-License-Identifier: Apache-2.0
"""What a gateway that starts again knows of the one before it, from the event log.

Sessions that were active stay active and are not held again; those that were held keep
their places for the retries of their clients; numbering goes on. Turns and tools that
were open count as over: their connections died with the old process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from mars.core.model import Activity, Session, SessionState
from mars.telemetry import Fold, LogError, SessionView, read_header, read_records

TAIL_BYTES = 64 * 2**20
"""Of the log's end that is read: some 300,000 events, 2 s at most (chosen)."""
SAME_BOOT_S = 60.0
"""Clocks of log and host may differ by so much; a reboot differs by its uptime."""


@dataclass(slots=True)
class Past:
    """The fold of the log's end, and the number of its last record."""

    fold: Fold
    last_seq: int


def recall(path: Path, fold: Fold) -> Past:
    """Fold the end of a log; nothing is recalled of another boot, since times differ.

    Raises:
        LogError: the file is no event log, or malformed.
    """
    past = Past(fold, 0)
    if not path.exists() or path.stat().st_size == 0:
        return past
    if not _is_same_boot(path):
        return past
    for record in read_records(path, tail_bytes=TAIL_BYTES):
        fold.apply(record.event)
        past.last_seq = record.seq
    for view in fold.sessions.values():
        view.open_turns.clear()
        view.open_tools.clear()
        view.is_turn_due = False
        view.move(fold.time, keep_span=False)
    return past


def session_of(view: SessionView, now: float) -> Session:
    """A session as the log left it."""
    return Session(
        view.session_id,
        arrival_time=view.arrived_at,
        generation=view.generation,
        parent=view.parent,
        state=SessionState.HELD if view.held_since is not None else SessionState.ACTIVE,
        activity=Activity.ACTING,
        num_turns=view.num_turns,
        context_tokens=view.context_tokens,
        last_turn_finished_at=now,
        tenant=view.tenant,
    )


def _is_same_boot(path: Path) -> bool:
    header = read_header(path)
    try:
        offset = float(header["wall_time"]) - float(header["monotonic_time"])
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"{path}, line 1: the header lacks {error}") from error
    return abs(time.time() - time.monotonic() - offset) < SAME_BOOT_S
