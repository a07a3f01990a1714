# SPDX-License-Identifier: Apache-2.0
"""References held on the KV of tool-blocked sessions."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request


class CachedBlocks:
    """Full blocks of a request that a later turn can hit, first to last.

    A request that finishes is looked at when its turn ends and when its blocks are freed,
    which are the same: they are listed once.
    """

    def __init__(self, kv_cache_manager: KVCacheManager) -> None:
        self._manager = kv_cache_manager
        self._seen: tuple[str, list[KVCacheBlock]] | None = None

    def look(self, request: Request) -> list[KVCacheBlock]:
        """Of a request that finishes."""
        groups = self._manager.get_blocks(request.request_id).blocks
        blocks = [
            b for group in groups for b in group if not b.is_null and b.block_hash is not None
        ]
        self._seen = (request.request_id, blocks)
        return blocks

    def take(self, request: Request) -> list[KVCacheBlock]:
        """Of a request whose blocks are freed now."""
        seen = self._seen
        if seen is None or seen[0] != request.request_id:
            seen = (request.request_id, self.look(request))
        self._seen = None
        return seen[1]


class RetainedBlocks:
    """Blocks kept referenced per session; each reference is taken once, freed once."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: dict[str, list[KVCacheBlock]] = {}
        self.num_blocks = 0

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def items(self) -> Iterable[tuple[str, list[KVCacheBlock]]]:
        """Sessions and their blocks."""
        return self._blocks.items()

    def hold(self, session_id: str, blocks: list[KVCacheBlock]) -> None:
        """Reference these blocks; a session's earlier ones are let go first."""
        self._pool.touch(blocks)
        if session_id in self._blocks:
            self.release(session_id)
        self._blocks[session_id] = blocks
        self.num_blocks += len(blocks)

    def release(self, session_id: str) -> int:
        """Free a session's references, tail first as vLLM does; how many blocks."""
        blocks = self._blocks.pop(session_id)
        self.num_blocks -= len(blocks)
        self._pool.free_blocks(reversed(blocks))
        return len(blocks)
