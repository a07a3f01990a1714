# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.core import events as ev
from mars.telemetry.codec import Opaque, Record
from mars.telemetry.parquet import write_parquet
from mars.telemetry.sink import JsonlSink
from tests.telemetry.test_codec import example

pq = pytest.importorskip("pyarrow.parquet")


def test_every_kind_becomes_a_row_with_its_fields(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "events.jsonl")
    events = [example(cls) for cls in ev.KINDS.values()]
    events.append(Opaque(time=9.0, wire_kind="from_2031", fields={"depth": 3}))
    sink.write(Record(i, "x", event) for i, event in enumerate(events))
    sink.close()
    path = write_parquet(sink.path)
    assert path == tmp_path / "events.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [row["kind"] for row in rows] == [*ev.KINDS, "from_2031"]
    assert [row["seq"] for row in rows] == list(range(len(events)))
    preempted = next(row for row in rows if row["kind"] == "turn_preempted")
    assert (preempted["rank"], preempted["lost_tokens"]) == ([1.0, 2.0], 3)
    assert preempted["window"] is None
    assert rows[-1]["opaque"] == '{"depth":3}'
    assert list(tmp_path.glob("*.partial")) == []


def test_an_empty_log_is_an_empty_table(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "events.jsonl")
    sink.close()
    assert pq.read_table(write_parquet(sink.path)).num_rows == 0
