# SPDX-License-Identifier: Apache-2.0
"""What a log tells the next gateway: who is alive, and where the engine's events stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mars.core import events as ev
from mars.gateway import restore
from mars.gateway.restore import carried, recall
from mars.telemetry import Fold, JsonlSink, Record
from mars.telemetry.sink import header
from mars.telemetry.subscriber import Position


class Log:
    """A log written by hand, with its numbering."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sink = JsonlSink(path)
        self._seq = 0

    def add(self, event: ev.Event, source: str = "gateway") -> None:
        self._seq += 1
        self._sink.write([Record(self._seq, source, event)])

    def session(self, session_id: str, time: float = 1.0) -> None:
        self.add(ev.SessionArrived(time=time, session_id=session_id))
        self.add(
            ev.SessionAdmitted(
                time=time, session_id=session_id, held_s=0.0, mode="fcfs", num_active=1
            )
        )

    def header(self, **changes: Any) -> None:
        self._sink.write_lines(msgspec.json.encode(header() | changes) + b"\n")


def shrunk(time: float = 1.0) -> ev.ChunkShrunk:
    return ev.ChunkShrunk(
        time=time, session_id="s", request_id="r", wanted_tokens=2, granted_tokens=1
    )


def joined(first_seq: int, rank: int = 0) -> ev.EngineJoined:
    return ev.EngineJoined(
        time=1.0, instance="one", engine_rank=rank, first_seq=first_seq, is_restart=False
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "events.jsonl")


def test_the_position_counts_the_engines_events_since_it_was_joined(log: Log) -> None:
    log.add(joined(100))
    log.add(joined(7, rank=1))
    for _ in range(3):
        log.add(shrunk(), "engine")
    log.add(shrunk(), "engine.1")
    log.add(ev.EventsDropped(time=1.0, count=40, source="engine"), "engine")
    log.add(shrunk(), "engine")
    past = recall(log.path, Fold)
    assert past.positions == {0: Position("one", 143), 1: Position("one", 7)}


def test_after_a_hole_in_the_log_no_position_is_claimed(log: Log) -> None:
    log.add(joined(100))
    log.add(shrunk(), "engine")
    log.add(ev.EventsDropped(time=1.0, count=5, source="log"), "log")
    log.add(shrunk(), "engine")
    assert recall(log.path, Fold).positions == {}


def test_sessions_of_another_boot_are_forgotten_but_numbers_go_on(log: Log) -> None:
    log.session("old")
    log.header(boot_id="another")
    log.session("theirs")
    log.header()
    log.session("ours")
    past = recall(log.path, Fold)
    assert set(past.fold.sessions) == {"ours"}
    assert past.last_seq == 6


def test_a_jump_of_the_wall_clock_is_no_reboot(log: Log) -> None:
    log.header(wall_time=1.0)
    log.session("s")
    assert set(recall(log.path, Fold).fold.sessions) == {"s"}


def test_without_a_boot_id_the_two_clocks_must_agree(log: Log) -> None:
    log.header(boot_id=None, wall_time=1.0)
    log.session("theirs")
    assert recall(log.path, Fold).fold.sessions == {}


def test_a_long_log_is_read_from_a_checkpoint(
    log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log.session("early")
    fold = recall(log.path, Fold).fold
    for _ in range(100):
        log.add(shrunk())
    log.header()
    log.add(carried(fold.sessions["early"], 5.0))
    log.session("late", 6.0)
    monkeypatch.setattr(restore, "TAIL_BYTES", 1500)
    past = recall(log.path, Fold)
    assert set(past.fold.sessions) == {"early", "late"}
    view = past.fold.sessions["early"]
    assert (view.arrived_at, view.admitted_at) == (1.0, 5.0)


def test_tool_call_ids_are_remembered_for_clients_that_echo_them(log: Log) -> None:
    log.session("s")
    log.add(
        ev.ToolStarted(
            time=2.0, session_id="s", tool_call_id="call-1", tool_name="bash", queued_s=0.0
        ),
        "inferred",
    )
    assert recall(log.path, Fold).calls == {"call-1": "s"}
