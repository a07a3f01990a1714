# SPDX-License-Identifier: Apache-2.0
"""One codec for the stream: event <-> map <-> JSON line or msgpack batch.

A map is the event's fields plus the envelope ``kind``, ``seq`` and ``source``. Known
kinds are decoded strictly (missing, unknown or mistyped fields are errors that name the
kind); unknown kinds pass through unchanged as :class:`Opaque` records, so that a newer
producer does not break an older reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import msgspec

from mars.core.events import KINDS, Event

SCHEMA = "mars.events/1"


class CodecError(ValueError):
    """A map or line is not an event; the message names kind and field."""


class Record(NamedTuple):
    """One event with its envelope: its place in the stream and who saw it."""

    seq: int
    source: str
    event: Event


@dataclass(slots=True, frozen=True, kw_only=True)
class Opaque(Event):
    """An event of a kind this version does not know, kept as it came."""

    kind: ClassVar[str] = "opaque"
    wire_kind: str
    fields: dict[str, Any]


_FIELDS: dict[str, tuple[str, ...]] = {
    kind: tuple(f.name for f in fields(cls)) for kind, cls in KINDS.items()
}
_FIELD_SETS = {kind: frozenset(names) for kind, names in _FIELDS.items()}
_ENVELOPE = frozenset({"kind", "seq", "source"})
_json_encoder = msgspec.json.Encoder()
_json_decoder = msgspec.json.Decoder(dict[str, Any])
_msgpack_encoder = msgspec.msgpack.Encoder()
_msgpack_batch = msgspec.msgpack.Decoder(list[dict[str, Any]])


def to_map(record: Record) -> dict[str, Any]:
    """The wire map of one record.

    ``events_dropped`` has a field ``source`` of its own (whose records were lost), which
    takes the place of the envelope's.
    """
    seq, source, event = record
    out: dict[str, Any] = {"kind": event.kind, "seq": seq, "source": source}
    if isinstance(event, Opaque):
        out.update(event.fields)
        out["kind"] = event.wire_kind
        out["time"] = event.time
        return out
    for name in _FIELDS[event.kind]:
        out[name] = getattr(event, name)
    return out


def from_map(wire: Mapping[str, Any], *, seq: int = 0, source: str = "unknown") -> Record:
    """Decode one wire map; ``seq`` and ``source`` fill in for what the map lacks.

    Raises:
        CodecError: not an event, or a known kind with wrong fields.
    """
    kind = wire.get("kind")
    if not isinstance(kind, str):
        raise CodecError("an event needs a 'kind' (string)")
    seq = wire.get("seq", seq)
    source = wire.get("source", source)
    if not isinstance(seq, int) or not isinstance(source, str):
        raise CodecError(f"{kind}: 'seq' must be an integer and 'source' a string")
    known = _FIELD_SETS.get(kind)
    if known is None:
        return Record(seq, source, _opaque(kind, wire))
    values = {key: value for key, value in wire.items() if key not in _ENVELOPE or key in known}
    if unknown := values.keys() - known:
        raise CodecError(f"{kind}: unknown field {min(unknown)!r}")
    if "window" in values and values["window"] is None:
        values["window"] = math.inf  # JSON has no infinity; "no bound" is null there
    try:
        return Record(seq, source, msgspec.convert(values, KINDS[kind]))
    except msgspec.ValidationError as error:
        raise CodecError(f"{kind}: {error}") from error


def _opaque(kind: str, wire: Mapping[str, Any]) -> Opaque:
    time = wire.get("time")
    if not isinstance(time, int | float):
        raise CodecError(f"{kind}: 'time' must be a number (monotonic seconds)")
    rest = {key: value for key, value in wire.items() if key not in _ENVELOPE and key != "time"}
    return Opaque(time=time, wire_kind=kind, fields=rest)


def encode_json(record: Record) -> bytes:
    """One JSON object, without a line end. An infinite window is written as null."""
    return _json_encoder.encode(to_map(record))


def decode_json(line: bytes | str, *, seq: int = 0, source: str = "unknown") -> Record:
    """Decode one JSON line.

    Raises:
        CodecError: not JSON, or not an event.
    """
    try:
        wire = _json_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"not a JSON object: {error}") from error
    return from_map(wire, seq=seq, source=source)


def encode_batch(records: Iterable[Record]) -> bytes:
    """A msgpack list of wire maps."""
    return _msgpack_encoder.encode([to_map(record) for record in records])


def decode_batch(payload: bytes) -> list[Record]:
    """Decode a msgpack list of wire maps.

    Raises:
        CodecError: not such a list, or a wrong event in it.
    """
    try:
        wires = _msgpack_batch.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"not a msgpack list of events: {error}") from error
    return [from_map(wire) for wire in wires]
