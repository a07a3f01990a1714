# SPDX-License-Identifier: Apache-2.0
"""LMCache's agent traces (mini-swe-agent): every call with its whole prompt and reply as text.

Rows ``{timestamp (microseconds, of the call's start), session_id, input, output}``, in any
order. The text says exactly what prompts share; it is cut into blocks of ``BLOCK_TOKENS``
tokens, which are known by all text up to their end, as in a prefix cache.

Not recorded, hence assumed: tokens are ``chars_per_token`` characters each (about 4 for English
and code), and of the time from one call to the next the model takes ``output tokens x
s_per_token``; what is left is the tool's.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from mars.traces.errors import TraceError
from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Name, Seconds, TraceSession, TraceTool, TraceTurn, runs_of

BLOCK_TOKENS = 16
CHARS_PER_TOKEN = 4.0
S_PER_TOKEN = 0.01
"""A reply at 100 tokens a second: recorded calls begin about a second apart in all (assumed)."""
_MICROSECONDS = 1e6


class _Row(Struct):
    timestamp: Seconds
    session_id: Name
    input: str
    output: str = ""


def read_miniswe(
    path: str | Path,
    *,
    chars_per_token: float = CHARS_PER_TOKEN,
    s_per_token: float = S_PER_TOKEN,
) -> Iterator[TraceSession]:
    """Read rows and yield sessions by their first call.

    Args:
        path: the rows, plain or compressed.
        chars_per_token: characters behind one token.
        s_per_token: seconds the model took for one, counted out of the tool's time.

    Raises:
        TraceError: a line is not such a row, or a setting makes no sense.
    """
    if not chars_per_token > 0:
        raise TraceError(f"{chars_per_token} is not positive. Give 4.", field="chars_per_token")
    groups: dict[str, list[tuple[int, _Row]]] = defaultdict(list)
    for line, row in read_rows(path, _Row):
        groups[row.session_id].append((line, row))
    for group in groups.values():
        group.sort(key=lambda pair: pair[1].timestamp)
    known: dict[bytes, int] = {}
    began = min(group[0][1].timestamp for group in groups.values())
    for session_id, group in sorted(groups.items(), key=lambda item: item[1][0][1].timestamp):
        rows = [row for _, row in group]
        turns = tuple(
            _turn(row, later, known, chars_per_token, s_per_token)
            for row, later in zip(rows, [*rows[1:], None], strict=True)
        )
        session = TraceSession(
            session_id=session_id,
            arrival_s=(rows[0].timestamp - began) / _MICROSECONDS,
            turns=turns,
            block_scope="miniswe",
            source="miniswe",
        )
        yield checked(session, path, group[0][0])


def _turn(
    row: _Row, later: _Row | None, known: dict[bytes, int], chars: float, s_per_token: float
) -> TraceTurn:
    output_tokens = max(1, round(len(row.output) / chars))
    tools: tuple[TraceTool, ...] = ()
    if later is not None:
        apart_s = (later.timestamp - row.timestamp) / _MICROSECONDS
        tool_s = max(0.0, apart_s - output_tokens * s_per_token)
        tools = (TraceTool(name="shell", duration_s=round(tool_s, 6)),)
    return TraceTurn(
        prompt_tokens=max(1, round(len(row.input) / chars)),
        output_tokens=output_tokens,
        blocks=runs_of(_blocks(row.input, known, chars)) or None,
        block_size=BLOCK_TOKENS,
        text=row.output or None,
        tools=tools,
    )


def _blocks(text: str, known: dict[bytes, int], chars: float) -> list[int]:
    """Ids of the whole blocks of a prompt; equal ids are equal text from the beginning on."""
    size = BLOCK_TOKENS * chars
    digest = hashlib.blake2b(digest_size=16)
    ids: list[int] = []
    for index in range(int(len(text) / size)):
        digest.update(text[int(index * size) : int((index + 1) * size)].encode())
        ids.append(known.setdefault(digest.digest(), len(known)))
    return ids
