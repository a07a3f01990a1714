# SPDX-License-Identifier: Apache-2.0
"""The event log as one wide Parquet table: a row an event, a column a field."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from mars.core.events import KINDS
from mars.telemetry.codec import Record, to_map
from mars.telemetry.sink import read_records

ROWS_AT_ONCE = 50_000
OPAQUE = "opaque"
"""Column that holds the fields of unknown kinds, as JSON."""


def write_parquet(
    log: str | os.PathLike[str], target: str | os.PathLike[str] | None = None
) -> Path | None:
    """Write a log's events beside it as ``.parquet``; None where pyarrow is missing.

    The file appears whole or not at all. Fields that an event does not have are null.

    Raises:
        LogError: the log is malformed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    path = Path(target) if target is not None else Path(log).with_suffix(".parquet")
    schema = pa.schema([(name, _arrow_type(pa, kind)) for name, kind in columns().items()])
    partial = path.with_suffix(".parquet.partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for rows in _batches(read_records(log)):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    partial.replace(path)
    return path


def columns() -> dict[str, type]:
    """Column names and their Python types, for all kinds together."""
    found: dict[str, type] = {"seq": int, "source": str, "kind": str, "time": float}
    for cls in KINDS.values():
        for name, hint in typing.get_type_hints(cls).items():
            if name == "kind":
                continue
            kind = _plain(hint)
            if {found.get(name), kind} == {int, float}:
                kind = float
            found[name] = kind
    found[OPAQUE] = str
    return found


def _plain(hint: Any) -> type:
    """The type behind an optional; tuples are lists, those of numbers of floats."""
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is not tuple:
        return hint
    return list[str] if str in typing.get_args(hint) else list


def _arrow_type(pa: Any, kind: type) -> Any:
    return {
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        str: pa.string(),
        list: pa.list_(pa.float64()),
        list[str]: pa.list_(pa.string()),
    }[kind]


def _batches(records: Iterator[Record]) -> Iterator[list[dict[str, Any]]]:
    while batch := [_row(record) for record in islice(records, ROWS_AT_ONCE)]:
        yield batch


def _row(record: Record) -> dict[str, Any]:
    wire = to_map(record)
    if wire["kind"] in KINDS:
        return wire
    envelope = {name: wire.pop(name) for name in ("seq", "source", "kind", "time")}
    return envelope | {OPAQUE: msgspec.json.encode(wire).decode()}
