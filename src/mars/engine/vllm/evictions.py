# SPDX-License-Identifier: Apache-2.0
"""Who loses cached blocks to vLLM's own LRU: watched, not changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock


class EvictionWatch:
    """Counts blocks given away with cached content, by the session that freed them last.

    Args:
        pool: vLLM's block pool; its ``_maybe_evict_cached_block`` is wrapped.
        take: receives (session id, blocks).
    """

    def __init__(self, pool: BlockPool, take: Callable[[str, int], None]) -> None:
        seam = cast(Any, pool)
        self._stock: Callable[[KVCacheBlock], bool] = seam._maybe_evict_cached_block  # noqa: SLF001
        self._take = take
        self._last_user: dict[int, str] = {}
        self._num_evicted: defaultdict[str, int] = defaultdict(int)
        seam._maybe_evict_cached_block = self._maybe_evict  # noqa: SLF001

    def use(self, session_id: str, blocks: Iterable[KVCacheBlock]) -> None:
        """Note whose request frees these blocks."""
        for block in blocks:
            self._last_user[block.block_id] = session_id

    def hand_over(self) -> None:
        """End a step: tell what was given away in it."""
        for session_id, num_blocks in self._num_evicted.items():
            self._take(session_id, num_blocks)
        self._num_evicted.clear()

    def _maybe_evict(self, block: KVCacheBlock) -> bool:
        # Once for every block given away: nothing but counting.
        if not self._stock(block):
            return False
        user = self._last_user.get(block.block_id)
        if user is not None:
            self._num_evicted[user] += 1
        return True
