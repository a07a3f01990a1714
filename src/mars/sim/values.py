# SPDX-License-Identifier: Apache-2.0
"""Free cached blocks in the order of their worth, as the plug-in keeps them in vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mars.sim.blocks import BlockPool, Extent, FreeQueue, Table

SHARED: Final = "\0shared"
"""Owner of blocks that more than one session used: given away last."""


class ValuePool(BlockPool):
    """One free queue per owning session, emptied by ascending ``value(session_id)``.

    Mirrors ``mars.engine.vllm.blocks.ValueOrderedBlocks``, its re-ranking interval included.

    Args:
        num_blocks: usable blocks.
        value: what keeping a session's prefix is worth per block.
        evicted: receives (session id, blocks, value) of what was given away.
        clock: seconds.
    """

    RERANK_S = 0.1

    def __init__(
        self,
        num_blocks: int,
        value: Callable[[str], float],
        evicted: Callable[[str, int, float], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(num_blocks)
        self._value = value
        self._evicted = evicted
        self._clock = clock
        self._queues: dict[str, FreeQueue] = {}
        self._order: list[tuple[float, str]] = []
        self._ranked_at = float("-inf")

    def free(self, table: Table, owner: str = "", *, is_used: bool = True) -> None:
        """As the base; ``is_used``: by this owner just now, not merely held for it."""
        if is_used:
            for extent in table.extents:
                if not extent.user:
                    extent.user = owner
                elif extent.user != owner:
                    extent.user = SHARED
        super().free(table, owner)

    def _link(self, extent: Extent, owner: str) -> None:
        name = owner if not extent.user or extent.user == owner else SHARED
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = FreeQueue()
            self._ranked_at = float("-inf")
        extent.owner = name
        queue.append(extent)

    def _unlink(self, extent: Extent) -> None:
        queue = self._queues[extent.owner]
        queue.remove(extent)
        if not queue.num_blocks:
            del self._queues[extent.owner]
            self._ranked_at = float("-inf")

    def _evict(self, num_blocks: int) -> None:
        left = num_blocks
        while left:
            value, owner = self._least()
            queue = self._queues[owner]
            taken = min(left, queue.num_blocks)
            queue.evict(taken)
            if not queue.num_blocks:
                del self._queues[owner]
                self._order.pop()
            if owner != SHARED:
                self._evicted(owner, taken, value)
            left -= taken

    def _least(self) -> tuple[float, str]:
        if not self._order or self._clock() - self._ranked_at >= self.RERANK_S:
            self._rank()
        return self._order[-1]

    def _rank(self) -> None:
        self._ranked_at = self._clock()
        value = self._value
        order = [
            (float("inf") if owner == SHARED else value(owner), owner) for owner in self._queues
        ]
        order.sort(reverse=True)
        self._order = order
