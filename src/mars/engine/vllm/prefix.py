# SPDX-License-Identifier: Apache-2.0
"""How much of a prompt had been computed before for its session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STRIDE = 32
"""One hash in so many is kept: 500 sessions of 100k tokens cost about 10 MB."""


@dataclass(slots=True, frozen=True)
class PrefixAnchor:
    """Sparse block hashes of a finished turn; block hashes chain over their prefix."""

    num_blocks: int
    last: Any
    sparse: tuple[Any, ...]

    @classmethod
    def of(cls, block_hashes: Sequence[Any]) -> PrefixAnchor | None:
        """Anchor of the full blocks of a turn; None without any."""
        if not block_hashes:
            return None
        return cls(len(block_hashes), block_hashes[-1], tuple(block_hashes[STRIDE - 1 :: STRIDE]))

    def reusable_blocks(self, block_hashes: Sequence[Any]) -> int:
        """Leading blocks that both have; exact when the old prompt was extended,
        otherwise (compaction) rounded down to ``STRIDE`` blocks."""
        if len(block_hashes) >= self.num_blocks and block_hashes[self.num_blocks - 1] == self.last:
            return self.num_blocks
        low, high = 0, min(len(self.sparse), len(block_hashes) // STRIDE)
        while low < high:
            middle = (low + high + 1) // 2
            if block_hashes[middle * STRIDE - 1] == self.sparse[middle - 1]:
                low = middle
            else:
                high = middle - 1
        return low * STRIDE
