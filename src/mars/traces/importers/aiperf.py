# SPDX-License-Identifier: Apache-2.0
"""aiperf's multi-turn rows: Mooncake keys plus ``session_id`` and ``delay``, lengths per turn.

A row's ``input_length`` counts the tokens that turn adds; the conversation so far, replies
included, comes before them. ``delay`` and ``timestamp`` are milliseconds. Block ids of a session's
first row are kept (they hold the prefix that sessions share); later rows add content of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Count, Name, Positive, Seconds, TraceSession, TraceTurn, runs_of

BLOCK_TOKENS = 512
"""aiperf's default for the tokens behind one block id."""


class _Row(Struct):
    input_length: Positive
    output_length: Count = 1
    session_id: Name | None = None
    timestamp: Seconds | None = None
    delay: Seconds = 0.0
    hash_ids: tuple[Count, ...] = ()


def read_aiperf(path: str | Path, *, block_tokens: int = BLOCK_TOKENS) -> Iterator[TraceSession]:
    """Read rows and yield sessions by first appearance; a row without id is its own session.

    Args:
        path: the rows.
        block_tokens: tokens per block id (aiperf's ``--prompt-input-tokens-block-size``).
    """
    groups: dict[str, list[tuple[int, _Row]]] = defaultdict(list)
    for line, row in read_rows(path, _Row):
        groups[row.session_id or f"aiperf-{line}"].append((line, row))
    for session_id, group in groups.items():
        first_line, first = group[0]
        session = TraceSession(
            session_id=session_id,
            arrival_s=(first.timestamp or 0.0) / 1000.0,
            turns=_turns([row for _, row in group], block_tokens),
            block_scope="aiperf",
            source="aiperf",
        )
        yield checked(session, path, first_line)


def _turns(rows: list[_Row], block_tokens: int) -> tuple[TraceTurn, ...]:
    turns: list[TraceTurn] = []
    context_tokens = 0
    for index, row in enumerate(rows):
        output_tokens = max(1, row.output_length)
        gap_s = rows[index + 1].delay / 1000.0 if index + 1 < len(rows) else 0.0
        turns.append(
            TraceTurn(
                prompt_tokens=context_tokens + row.input_length,
                output_tokens=output_tokens,
                blocks=(runs_of(row.hash_ids) or None) if index == 0 else None,
                block_size=block_tokens if index == 0 and row.hash_ids else 64,
                gap_s=gap_s,
            )
        )
        context_tokens += row.input_length + output_tokens
    return tuple(turns)
