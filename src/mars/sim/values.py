# SPDX-License-Identifier: Apache-2.0
"""Free cached blocks in the order of their worth, as the plug-in keeps them in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Collection

from mars.core.worth import SHARED, WorthOrder
from mars.sim.blocks import BlockPool, Extent, FreeQueue, Table


class ValuePool(BlockPool):
    """One free queue per owning session, emptied by ascending ``value(session_id)``.

    Mirrors ``mars.engine.vllm.blocks.ValueOrderedBlocks``.

    Args:
        num_blocks: usable blocks.
        value: what keeping a session's prefix is worth per block.
        evicted: receives (session id, blocks, value) of what was given away.
        clock: seconds.
        revalued: sessions whose value changed since the last call; None: any may have.
    """

    def __init__(
        self,
        num_blocks: int,
        value: Callable[[str], float],
        evicted: Callable[[str, int, float], None],
        clock: Callable[[], float],
        revalued: Callable[[], Collection[str] | None] | None = None,
    ) -> None:
        super().__init__(num_blocks)
        self._evicted = evicted
        self._order = WorthOrder(value, clock, revalued)
        self._queues: dict[str, FreeQueue] = {}

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
            self._order.add(name)
        extent.owner = name
        queue.append(extent)

    def _unlink(self, extent: Extent) -> None:
        queue = self._queues[extent.owner]
        queue.remove(extent)
        if not queue.num_blocks:
            del self._queues[extent.owner]
            self._order.drop(extent.owner)

    def _evict(self, num_blocks: int) -> None:
        left = num_blocks
        while left:
            value, owner = self._order.least()
            queue = self._queues[owner]
            taken = min(left, queue.num_blocks)
            queue.evict(taken)
            if not queue.num_blocks:
                del self._queues[owner]
                self._order.emptied(owner)
            if owner != SHARED:
                self._evicted(owner, taken, value)
            left -= taken
