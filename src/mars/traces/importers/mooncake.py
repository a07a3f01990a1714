# SPDX-License-Identifier: Apache-2.0
"""Mooncake request traces (FAST'25): arrival, lengths and block ids of single requests.

The form has no sessions: every request becomes a session of one turn. Sharing between requests is
kept exactly, by the block ids (512 tokens each; the last one may be partial).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Count, Positive, Seconds, TraceSession, TraceTurn, runs_of

BLOCK_TOKENS = 512
"""Tokens per block id in the published traces."""


class _Row(Struct):
    timestamp: Seconds
    input_length: Positive
    output_length: Count
    hash_ids: tuple[Count, ...] = ()


def read_mooncake(
    path: str | Path, *, block_tokens: int = BLOCK_TOKENS, scope: str = "mooncake"
) -> Iterator[TraceSession]:
    """Read requests as one-turn sessions, in file order; ``timestamp`` is milliseconds.

    Args:
        path: the trace.
        block_tokens: tokens per block id.
        scope: sessions of one scope share blocks of equal id.
    """
    for line, row in read_rows(path, _Row):
        turn = TraceTurn(
            prompt_tokens=row.input_length,
            output_tokens=max(1, row.output_length),
            blocks=runs_of(row.hash_ids) or None,
            block_size=block_tokens,
        )
        session = TraceSession(
            session_id=f"{scope}-{line}",
            arrival_s=row.timestamp / 1000.0,
            turns=(turn,),
            block_scope=scope,
            source="Mooncake",
        )
        yield checked(session, path, line)
