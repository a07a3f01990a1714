# SPDX-License-Identifier: Apache-2.0
"""Writing traces in other tools' forms. Our own is :func:`mars.traces.io.write_trace`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mars.traces.content import Segment, layout
from mars.traces.io import create
from mars.traces.schema import TraceSession

BLOCK_TOKENS = 512
"""Tokens per block id in Mooncake's published traces."""
OUTPUT_TOKEN_S = 0.02
"""Assumed time per output token (50 tokens/s, a usual rate of interactive serving)."""


def write_mooncake(
    path: str | Path,
    sessions: Iterable[TraceSession],
    *,
    block_tokens: int = BLOCK_TOKENS,
    output_token_s: float = OUTPUT_TOKEN_S,
) -> int:
    """Write every turn as a Mooncake request and return how many.

    Kept: lengths, and which blocks are shared. Lost: the sessions, the tools, the closed loop (a
    request's ``timestamp`` assumes ``output_token_s`` per output token before it), and sharing
    finer than a block.
    """
    rows = sorted(_rows(sessions, block_tokens, output_token_s), key=lambda row: row["timestamp"])
    with create(path) as stream:
        for row in rows:
            stream.write(msgspec.json.encode(row) + b"\n")
    return len(rows)


def _rows(
    sessions: Iterable[TraceSession], block_tokens: int, output_token_s: float
) -> Iterator[dict[str, Any]]:
    known: dict[tuple[int, tuple[Segment, ...]], int] = {}
    for session in sessions:
        now_s = session.arrival_s
        for turn, prompt in zip(session.turns, layout(session).prompts, strict=True):
            chain: list[int] = []
            for block in blocks(prompt, block_tokens):
                parent = chain[-1] if chain else -1
                chain.append(known.setdefault((parent, block), len(known)))
            yield {
                "timestamp": round(now_s * 1000.0),
                "input_length": turn.prompt_tokens,
                "output_length": turn.output_tokens,
                "hash_ids": chain,
            }
            now_s += turn.output_tokens * output_token_s
            now_s += turn.gap_s + sum(tool.duration_s for tool in turn.tools)


def blocks(segments: Sequence[Segment], block_tokens: int) -> Iterator[tuple[Segment, ...]]:
    """Yield a prompt in blocks, the last one perhaps partial; equal blocks compare equal."""
    block: list[Segment] = []
    space = block_tokens
    for content_id, start, count in segments:
        position, left = start, count
        while left:
            taken = min(left, space)
            block.append(Segment(content_id, position, taken))
            position, left, space = position + taken, left - taken, space - taken
            if not space:
                yield tuple(block)
                block, space = [], block_tokens
    if block:
        yield tuple(block)
