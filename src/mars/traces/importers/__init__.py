# SPDX-License-Identifier: Apache-2.0
"""Readers of the public trace forms, one file each, all to :class:`TraceSession`.

``read_any(path)`` finds out which form a file has; ``FORMATS`` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mars.traces.errors import TraceError
from mars.traces.importers.aiperf import read_aiperf
from mars.traces.importers.azure import read_azure
from mars.traces.importers.mas_task import read_mas_task
from mars.traces.importers.miniswe import read_miniswe
from mars.traces.importers.mooncake import read_mooncake
from mars.traces.importers.thunderagent import read_thunderagent
from mars.traces.importers.tracelab import read_tracelab
from mars.traces.importers.weka import read_weka
from mars.traces.io import open_lines, read_trace
from mars.traces.schema import SCHEMA, TraceSession

FORMATS: dict[str, Callable[..., Iterator[TraceSession]]] = {
    "mars": read_trace,
    "weka": read_weka,
    "thunderagent": read_thunderagent,
    "mooncake": read_mooncake,
    "azure": read_azure,
    "tracelab": read_tracelab,
    "aiperf": read_aiperf,
    "mas_task": read_mas_task,
    "miniswe": read_miniswe,
}


def read_any(path: str | Path, form: str | None = None, **options: Any) -> Iterator[TraceSession]:
    """Read a trace of any known form.

    Args:
        path: the file, plain or compressed, or ``public:NAME``.
        form: a key of ``FORMATS``; None: found from the first line.
        **options: passed on to that form's reader.

    Raises:
        TraceError: the form is unknown, or the file is not what it says.
    """
    name = form or detect(path)
    if name not in FORMATS:
        raise TraceError(
            f"there is no form {name!r}. Choose one of {', '.join(FORMATS)}.", field="form"
        )
    return FORMATS[name](path, **options)


def detect(path: str | Path) -> str:
    """Return the name of the form of a file, judged by its first line.

    Raises:
        TraceError: none fits; the message lists the known ones.
    """
    first = next(open_lines(path), None)
    if first is None:
        raise TraceError("holds no line. Give a recording with sessions.", source=str(path))
    if first[1].startswith(b"TIMESTAMP,"):
        return "azure"
    try:
        row: Any = msgspec.json.decode(first[1])
    except msgspec.MsgspecError:
        row = None
    name = _detect_row(row) if isinstance(row, dict) else None
    if name is None:
        raise TraceError(
            f"the form is not recognised. Name it: one of {', '.join(FORMATS)}.",
            source=str(path),
            line=first[0],
        )
    return name


def _detect_row(row: dict[str, Any]) -> str | None:
    schema = row.get("schema")
    if isinstance(schema, str) and schema.startswith(SCHEMA.split("/", maxsplit=1)[0]):
        return "mars"
    keys = set(row)
    marks = (
        ("mas_task", schema == "mas_task_v1"),
        ("weka", keys >= {"block_size", "requests"} or keys >= {"block_size", "turns"}),
        ("thunderagent", keys >= {"session", "turns"}),
        ("tracelab", keys >= {"round_index", "input_tokens_total"}),
        ("aiperf", "input_length" in keys and bool(keys & {"session_id", "delay"})),
        ("mooncake", "input_length" in keys),
        ("miniswe", keys >= {"timestamp", "session_id", "input", "output"}),
    )
    return next((name for name, fits in marks if fits), None)
