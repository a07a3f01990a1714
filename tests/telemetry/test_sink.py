# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mars.core.events import Event, ToolQueued
from mars.telemetry.codec import Record
from mars.telemetry.sink import (
    JsonlSink,
    LogError,
    read_events,
    read_header,
    read_log,
    read_records,
)


def queued(seq: int) -> Record:
    event = ToolQueued(time=float(seq), session_id="s", tool_call_id=f"c{seq}", tool_name="bash")
    return Record(seq, "tools", event)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    sink = JsonlSink(path)
    records = [queued(i) for i in range(1, 6)]
    sink.write(records[:2])
    assert list(read_records(path)) == records[:2]  # readable while it is being written
    sink.write(records[2:])
    sink.close()
    assert list(read_records(path)) == records
    assert list(read_events(path)) == [r.event for r in records]
    assert read_header(path)["schema"] == "mars.events/1"


@pytest.mark.parametrize("kept", [1, 10, 60])
def test_a_torn_last_line_is_left_out(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    sink.write([queued(1), queued(2), queued(3)])
    sink.close()
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    path.write_bytes(whole[: start + kept])
    assert [r.seq for r in read_records(path)] == [1, 2]


def test_reopening_after_a_crash_cuts_the_torn_tail_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    sink.write([queued(1), queued(2)])
    sink.close()
    path.write_bytes(path.read_bytes()[:-20])
    again = JsonlSink(path)
    again.write([queued(3)])
    again.close()
    assert [r.seq for r in read_records(path)] == [1, 3]


def test_a_file_torn_inside_its_header_is_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"schema":"mars.ev')
    assert list(read_records(path)) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"schema":"mars.events/1"}\nnot json\n', "line 2"),
        ('{"schema":"mars.events/9"}\n', "mars.events/9"),
        ("no header\n", "line 1"),
        ('{"schema":"mars.events/1"}\n{"kind":"tool_queued","time":1}\n', "line 2.*session_id"),
    ],
)
def test_a_malformed_log_is_refused_with_its_line(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match=named):
        list(read_records(path))


def test_a_place_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="telemetry.events_path"):
        JsonlSink(tmp_path / "file" / "events.jsonl")


def test_an_unknown_kind_in_the_log_does_not_stop_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    sink.write_lines(b'{"kind":"from_2031","seq":1,"source":"engine","time":1.0,"x":2}\n')
    sink.write([queued(2)])
    sink.close()
    assert [r.event.kind for r in read_records(path)] == ["opaque", "tool_queued"]
    assert isinstance(next(read_events(path)), Event)


def test_the_tail_begins_at_a_whole_line(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "events.jsonl")
    sink.write(queued(i) for i in range(1, 101))
    sink.close()
    size = len(JsonlSink.lines([queued(100)]))
    for tail_bytes in (size + 1, 2 * size, 10**6):
        seqs = [r.seq for r in read_records(sink.path, tail_bytes=tail_bytes)]
        assert seqs[-1] == 100
        assert seqs == list(range(seqs[0], 101))
    assert len(seqs) == 100


FULL_DISK = """
import resource, signal, sys
from mars.core.events import Event
from mars.telemetry import JsonlSink, Opaque, Record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = JsonlSink(sys.argv[1])
event = Opaque(time=1.0, wire_kind="x", fields={"text": "y" * 100})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 10000))
try:
    for i in range(0, 100, 2):
        sink.write([Record(i, "x", event), Record(i + 1, "x", event)])
except OSError as error:
    print(error.strerror, i)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
sink.write([Record(1000, "x", event)])
"""


def test_a_full_disk_leaves_no_half_batch_in_the_middle_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True
    )
    message, _, failed_at = ran.stdout.strip().rpartition(" ")
    assert message == "File too large"
    seqs = [r.seq for r in read_records(path)]
    assert seqs == [*range(int(failed_at)), 1000]
    assert len(seqs) > 10


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "events.jsonl", tmp_path / "events.1.jsonl"
    sink = JsonlSink(path)
    sink.write([queued(1)])
    path.rename(old)
    sink.write([queued(2)])
    assert sink.num_headers == 2
    sink.close()
    assert [[r.seq for r in read_records(p)] for p in (old, path)] == [[1], [2]]


def test_a_file_that_was_emptied_begins_with_a_header_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    sink.write([queued(1)])
    os.truncate(path, 0)  # logrotate's copytruncate
    sink.write([queued(2)])
    sink.close()
    assert [r.seq for r in read_records(path)] == [2]


def test_a_long_log_has_headers_to_begin_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mars.telemetry.sink.CHECKPOINT_BYTES", 1000)
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    for i in range(1, 31):
        sink.write([queued(i)])
    sink.close()
    entries = list(read_log(path))
    assert sink.num_headers == sum(isinstance(entry, dict) for entry in entries)
    assert sink.num_headers >= 3
    assert [r.seq for r in read_records(path)] == list(range(1, 31))


FULL_AT_START = """
import resource, signal, sys
from mars.telemetry import JsonlSink, LogError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    JsonlSink(sys.argv[1])
except LogError as error:
    print(error)
"""


def test_a_full_disk_at_start_names_the_setting(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_AT_START, tmp_path / "events.jsonl"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in ran.stdout
    assert "telemetry.events_path" in ran.stdout
