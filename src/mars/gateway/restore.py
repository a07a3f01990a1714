# SPDX-License-Identifier: Apache-2.0
"""What a gateway that starts again knows of the one before it, from the event log.

Sessions that were active stay active and are not held again; those that were held keep
their places for the retries of their clients; numbering goes on, and so does reading the
engine's events where the old process stopped. Turns and tools that were open count as
over: their connections died with the old process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars.core import events as ev
from mars.core.model import Activity, Session, SessionState
from mars.telemetry import Fold, LogError, Record, SessionView
from mars.telemetry.sink import header, read_log
from mars.telemetry.subscriber import Position

TAIL_BYTES = 64 * 2**20
"""Of the log's end that is read: some 300,000 events, 2 s at most (chosen); a checkpoint
stands in it at least every 16 MiB."""
SAME_BOOT_S = 60.0
"""Where the kernel gives no boot id: wall and monotonic clock may have moved apart by so
much since the header was written; a reboot moves them by the uptime."""
MAX_CALLS = 50_000


@dataclass(slots=True)
class Past:
    """What the log's end tells."""

    fold: Fold
    last_seq: int = 0
    """Number of the last record, of whatever boot."""
    positions: dict[int, Position] = field(default_factory=dict[int, Position])
    """How far each rank's events are in the log."""
    calls: OrderedDict[str, str] = field(default_factory=OrderedDict[str, str])
    """Tool-call ids that clients may echo, and their sessions."""


def recall(path: Path, new_fold: Callable[[], Fold]) -> Past:
    """Fold the end of a log; of another boot only the numbering, since times differ.

    Raises:
        LogError: the file is no event log, or malformed.
    """
    past = Past(new_fold())
    if not path.exists() or path.stat().st_size == 0:
        return past
    is_ours = False  # what stands before the first header may be of another boot
    present = header()
    for entry in read_log(path, tail_bytes=TAIL_BYTES):
        if isinstance(entry, Record):
            past.last_seq = max(past.last_seq, entry.seq)
            if is_ours:
                _take(past, entry)
        else:
            is_ours = _is_same_boot(entry, present, path)
            if not is_ours:
                past = Past(new_fold(), past.last_seq)
    fold = past.fold
    for view in fold.sessions.values():
        view.open_turns.clear()
        view.open_tools.clear()
        view.is_turn_due = False
        view.move(fold.time, keep_span=False)
    return past


def _take(past: Past, record: Record) -> None:
    event, positions = record.event, past.positions
    past.fold.apply(event)
    match event:
        case ev.EngineJoined():
            positions[event.engine_rank] = Position(event.instance, event.first_seq - 1)
        case ev.EventsDropped(source="log" | "bus"):
            positions.clear()  # some of what was lost there may have been the engine's
        case ev.ToolQueued() | ev.ToolStarted():
            past.calls[event.tool_call_id] = event.session_id
            if len(past.calls) > MAX_CALLS:
                past.calls.popitem(last=False)
        case _:
            pass
    if record.source.startswith("engine"):
        rank = int(record.source.partition(".")[2] or 0)
        if (known := positions.get(rank)) is not None:
            count = event.count if isinstance(event, ev.EventsDropped) else 1
            positions[rank] = Position(known.instance, known.seq + count)


def carried(view: SessionView, now: float) -> ev.SessionCarried:
    """What a new log file says of a session that lives on from the one before."""
    return ev.SessionCarried(
        time=now,
        session_id=view.session_id,
        generation=view.generation,
        tenant=view.tenant,
        parent=view.parent,
        arrived_at=view.arrived_at,
        held_since=view.held_since,
        num_turns=view.num_turns,
        num_prompt_tokens=view.first_prompt_tokens,
        context_tokens=view.context_tokens,
    )


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


def _is_same_boot(then: dict[str, Any], now: dict[str, Any], path: Path) -> bool:
    """Whether monotonic times of both headers can be compared."""
    if then.get("boot_id") and now["boot_id"]:
        return then["boot_id"] == now["boot_id"]
    try:
        offset = float(then["wall_time"]) - float(then["monotonic_time"])
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"{path}: a header lacks {error}") from error
    return abs(now["wall_time"] - now["monotonic_time"] - offset) < SAME_BOOT_S
