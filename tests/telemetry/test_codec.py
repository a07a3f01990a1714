# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

import msgspec
import pytest

from mars.core import events as ev
from mars.telemetry.codec import (
    CodecError,
    Opaque,
    Record,
    decode_batch,
    decode_json,
    encode_batch,
    encode_json,
    from_map,
    to_map,
)

_EXAMPLES: dict[Any, Any] = {
    str: "x",
    int: 3,
    float: 1.5,
    bool: True,
    tuple[str, ...]: ("a", "b"),
    tuple[float, ...]: (1.0, 2.0),
}


def example(cls: type[ev.Event]) -> ev.Event:
    """An event of this class with every field set."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        values[field.name] = _EXAMPLES[kind]
    return cls(**values)


@pytest.mark.parametrize("cls", ev.KINDS.values(), ids=list(ev.KINDS))
def test_every_kind_survives_json_and_msgpack(cls: type[ev.Event]) -> None:
    source = "x" if cls is ev.EventsDropped else "engine"
    record = Record(7, source, example(cls))
    assert decode_json(encode_json(record)) == record
    assert decode_batch(encode_batch([record, record])) == [record, record]


def test_the_wire_map_is_flat_with_its_envelope() -> None:
    event = ev.ToolQueued(time=1.0, session_id="s", tool_call_id="c", tool_name="bash")
    assert to_map(Record(4, "tools", event)) == {
        "kind": "tool_queued",
        "seq": 4,
        "source": "tools",
        "time": 1.0,
        "session_id": "s",
        "tool_call_id": "c",
        "tool_name": "bash",
    }


def test_an_unknown_kind_passes_through_unchanged() -> None:
    wire = {"kind": "from_2031", "seq": 9, "source": "engine", "time": 2.0, "depth": [1, {"a": 2}]}
    record = from_map(wire)
    assert isinstance(record.event, Opaque)
    assert to_map(decode_json(encode_json(record))) == wire


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"tool_name": 5}, "tool_name"),
        ({"time": "now"}, "time"),
        ({"seq": "1"}, "'seq' must be an integer"),
    ],
)
def test_a_known_kind_is_decoded_strictly(change: dict[str, Any], named: str) -> None:
    wire = {
        "kind": "tool_queued",
        "seq": 1,
        "source": "tools",
        "time": 1.0,
        "session_id": "s",
        "tool_call_id": "c",
        "tool_name": "bash",
    }
    from_map(wire)
    with pytest.raises(CodecError, match=named):
        from_map(wire | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(CodecError, match="tool_queued.*session_id"):
        from_map({"kind": "tool_queued", "time": 1.0})


@pytest.mark.parametrize("line", [b"", b"[]", b"\xff", b'{"kind": 3}', b'{"kind":"new"}'])
def test_what_is_no_event_is_a_codec_error(line: bytes) -> None:
    with pytest.raises(CodecError):
        decode_json(line)


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode({"kind": "x"})])
def test_what_is_no_batch_is_a_codec_error(payload: bytes) -> None:
    with pytest.raises(CodecError):
        decode_batch(payload)


def test_an_unbounded_window_is_null_in_json_and_comes_back_unbounded() -> None:
    event = ev.WindowChanged(
        time=1.0,
        window=math.inf,
        num_active=1,
        num_held=0,
        is_kv_pressed=False,
        is_cpu_pressed=False,
        reason="calm",
    )
    line = encode_json(Record(1, "gateway", event))
    assert b'"window":null' in line
    assert decode_json(line).event == event
