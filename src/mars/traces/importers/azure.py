# SPDX-License-Identifier: Apache-2.0
"""Azure LLM inference traces (CSV): arrival and lengths of single requests, nothing shared."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mars.traces.errors import TraceError
from mars.traces.io import open_lines
from mars.traces.schema import TraceSession, TraceTurn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: str | Path) -> Iterator[TraceSession]:
    """Read requests as one-turn sessions; arrivals count from the first line.

    Raises:
        TraceError: the header is another, or a line does not hold a time and two counts.
    """
    start: datetime | None = None
    columns: list[str] | None = None
    for line, text in open_lines(path):
        cells = next(csv.reader([text.decode("utf-8-sig", errors="replace")]))
        if columns is None:
            columns = _header(cells, path, line)
            continue
        row = dict(zip(columns, cells, strict=False))
        when = _time(row, path, line)
        start = start or when
        yield TraceSession(
            session_id=f"azure-{line}",
            arrival_s=round(max(0.0, (when - start).total_seconds()), 6),
            turns=(
                TraceTurn(
                    prompt_tokens=max(1, _count(row, "ContextTokens", path, line)),
                    output_tokens=max(1, _count(row, "GeneratedTokens", path, line)),
                ),
            ),
            source="AzurePublicDataset",
        )
    if start is None:
        raise TraceError("holds no request. Give the whole CSV.", source=str(path))


def _header(cells: list[str], path: str | Path, line: int) -> list[str]:
    if not set(COLUMNS) <= set(cells):
        raise TraceError(
            f"expected the columns {', '.join(COLUMNS)}. Give the CSV with its header line.",
            source=str(path),
            line=line,
        )
    return cells


def _time(row: dict[str, str], path: str | Path, line: int) -> datetime:
    text = row.get("TIMESTAMP", "")
    try:
        # The zone, which later releases write, is the same on every line.
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise TraceError(
            f"{text!r} is no time. Write it as 2023-11-16 18:15:46.6805900.",
            source=str(path),
            line=line,
            field="TIMESTAMP",
        ) from None


def _count(row: dict[str, str], column: str, path: str | Path, line: int) -> int:
    text = row.get(column, "")
    if not text.isdecimal():
        raise TraceError(
            f"{text!r} is no number of tokens. Write a whole number.",
            source=str(path),
            line=line,
            field=column,
        )
    return int(text)
