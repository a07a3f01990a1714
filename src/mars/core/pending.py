# SPDX-License-Identifier: Apache-2.0
"""What the running turns still need of memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from mars.core.model import Turn


class PendingBlocks:
    """Blocks that running turns still take for their prompts, and one for each that decodes.

    Asked several times a step, of all that run: each turn is counted once.

    Args:
        block_size: tokens per KV block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._num_counted = 0
        self._last: Turn | None = None
        self._blocks = 0

    def changed(self) -> None:
        """Progress was made, or somebody left: count anew."""
        self._num_counted, self._last = 0, None

    def of(self, running: Sequence[Turn]) -> int:
        """Blocks for all of ``running``; since the last change it may only have grown."""
        num = self._num_counted
        if not num or num > len(running) or running[num - 1] is not self._last:
            num = self._blocks = 0
        if num < len(running):
            self._blocks += self.count(islice(running, num, None))
            self._num_counted, self._last = len(running), running[-1]
        return self._blocks

    def count(self, turns: Iterable[Turn]) -> int:
        """Blocks for these turns."""
        blocks, size = 0, self._block_size
        for turn in turns:
            rest = turn.num_prompt_tokens + turn.num_output_tokens - turn.num_computed_tokens
            blocks += -(-rest // size) if rest > size else 1
        return blocks
