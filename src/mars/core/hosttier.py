# SPDX-License-Identifier: Apache-2.0
"""Turns whose blocks are being copied from host memory, and room for a prefill beside them."""

from __future__ import annotations

from collections.abc import Iterable

from mars.core.model import Turn


class Loading(dict[str, Turn]):
    """Request id -> turn that waits and holds blocks, from its load's begin to its start."""

    def begin(self, turn: Turn, num_tokens: int) -> None:
        """It has blocks for so many tokens; what it lacks of them is being copied."""
        turn.is_loading = True
        turn.num_computed_tokens = num_tokens
        self[turn.request_id] = turn

    def end(self, turn: Turn) -> None:
        """It starts, left, or its copy failed; nothing where it was not loading."""
        if turn.is_loading:
            turn.is_loading = False
            del self[turn.request_id]


def pending_blocks(others: Iterable[Turn], block_size: int) -> int:
    """Blocks that turns which have begun still need: a prefill its rest, a decode one."""
    pending = 0
    for turn in others:
        rest = turn.num_prompt_tokens + turn.num_output_tokens - turn.num_computed_tokens
        pending += -(-rest // block_size) if rest > block_size else 1
    return pending
