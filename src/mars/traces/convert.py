# SPDX-License-Identifier: Apache-2.0
"""From any known form to ours, or to Mooncake's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mars.traces.errors import TraceError
from mars.traces.export import write_mooncake
from mars.traces.importers import read_any
from mars.traces.io import write_trace
from mars.traces.schema import TraceSession

TARGETS = ("mars", "mooncake")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    form: str | None = None,
    to: str = "mars",
    **options: Any,
) -> int:
    """Convert a file and return how many lines were written.

    Args:
        source: any known form (:data:`mars.traces.importers.FORMATS`), or ``public:NAME``.
        target: the file to write, compressed as its name says.
        form: the form of the source; None: found from its first line.
        to: "mars", or "mooncake" (lossy: :func:`mars.traces.export.write_mooncake`).
        **options: of the source form's reader (``seed``, ``text_path``, ``tool_cap_s`` ...).

    Raises:
        TraceError: the source cannot be read, or the target form is unknown.
    """
    sessions: Iterable[TraceSession] = read_any(source, form, **options)
    if to == "mooncake":
        return write_mooncake(target, sessions)
    if to != "mars":
        raise TraceError(
            f"there is no target form {to!r}. Choose one of {', '.join(TARGETS)}.", field="to"
        )
    return write_trace(target, sessions)
