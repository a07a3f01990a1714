# SPDX-License-Identifier: Apache-2.0
"""Who loses cached blocks to vLLM's own LRU: watched, not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock


class EvictionWatch:
    """Tells the session that freed a cached block last when the block is given away.

    Args:
        pool: vLLM's block pool; its ``_maybe_evict_cached_block`` is wrapped.
        take: receives (session id, blocks).
    """

    def __init__(self, pool: BlockPool, take: Callable[[str, int], None]) -> None:
        seam = cast(Any, pool)
        self._stock: Callable[[KVCacheBlock], bool] = seam._maybe_evict_cached_block  # noqa: SLF001
        self._take = take
        self._last_user: dict[int, str] = {}
        seam._maybe_evict_cached_block = self._maybe_evict  # noqa: SLF001

    def use(self, session_id: str, blocks: Iterable[KVCacheBlock]) -> None:
        """Note whose request frees these blocks."""
        for block in blocks:
            self._last_user[block.block_id] = session_id

    def _maybe_evict(self, block: KVCacheBlock) -> bool:
        is_evicted = self._stock(block)
        user = self._last_user.pop(block.block_id, None)
        if is_evicted and user is not None:
            self._take(user, 1)
        return is_evicted
