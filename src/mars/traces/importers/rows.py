# SPDX-License-Identifier: Apache-2.0
"""Typed reading of foreign JSON Lines: every error names file, line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from mars.traces.errors import TraceError
from mars.traces.io import open_lines
from mars.traces.schema import TraceSession, check_session, explain

Row = TypeVar("Row")


def read_rows(path: str | Path, row_type: type[Row]) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row).

    Raises:
        TraceError: a line is not JSON or has a wrong type; or there is none.
    """
    decoder = msgspec.json.Decoder(row_type)
    number = 0
    for number, line in open_lines(path):
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise explain(error).at(str(path), number) from None
        yield number, row
    if not number:
        raise TraceError("holds no line. Give a recording with sessions.", source=str(path))


def checked(session: TraceSession, path: str | Path, line: int) -> TraceSession:
    """Return the session if it does not contradict itself.

    Raises:
        TraceError: with the line of the recording it came from.
    """
    try:
        check_session(session)
    except TraceError as error:
        raise error.at(str(path), line) from None
    return session
