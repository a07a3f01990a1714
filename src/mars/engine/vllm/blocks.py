# SPDX-License-Identifier: Apache-2.0
"""Free KV blocks in the order of their worth, instead of plain LRU.

Cached blocks that nobody runs on still count as free, so nothing here can deadlock or
block an admission; only *which* of them is given away first changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from mars.core.worth import SHARED, WorthOrder

Value = Callable[[str], float]
Evicted = Callable[[str, int, float], None]


class ValueOrderedBlocks:
    """Drop-in for ``BlockPool.free_block_queue``: least valued session first.

    Blocks without cached content go first, in vLLM's own order. Cached blocks lie in one
    list per owning session, in the order in which vLLM freed them (the tail of a prompt
    before its head), and the lists are emptied by ascending ``value(session_id)``, as
    :class:`WorthOrder` has them. Prefixes that several sessions used go last. O(1) per block,
    O(log n) per session whose list begins, ends or changes its worth.
    """

    def __init__(
        self,
        stock: FreeKVCacheBlockQueue,
        value: Value,
        evicted: Evicted,
        clock: Callable[[], float],
        revalued: Callable[[], Collection[str] | None] | None = None,
    ) -> None:
        self._plain = stock
        self._evicted = evicted
        self._order = WorthOrder(value, clock, revalued)
        self._by_owner: dict[str, FreeKVCacheBlockQueue] = {}
        # By block id. Not dicts: those are built anew now and then, a millisecond at a time.
        num_ids = 1 + max((block.block_id for block in stock.get_all_free_blocks()), default=-1)
        self._list_of: list[str | None] = [None] * num_ids
        self._last_user: list[str | None] = [None] * num_ids
        self.num_free_blocks = stock.num_free_blocks
        self.freeing: str | None = None
        """The session whose blocks are being freed right now."""

    # --- what BlockPool calls ----------------------------------------------------------
    def popleft(self) -> KVCacheBlock:
        """One free block; raises ValueError when there is none."""
        if self.num_free_blocks == 0:
            raise ValueError("No free blocks available")
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """``n`` free blocks, the least worth keeping first."""
        assert self.num_free_blocks >= n
        self.num_free_blocks -= n
        blocks = self._plain.popleft_n(min(n, self._plain.num_free_blocks))
        while len(blocks) < n:
            value, owner = self._order.least()
            queue = self._by_owner[owner]
            taken = queue.popleft_n(min(n - len(blocks), queue.num_free_blocks))
            if queue.num_free_blocks == 0:
                del self._by_owner[owner]
                self._order.emptied(owner)
            for block in taken:
                self._list_of[block.block_id] = self._last_user[block.block_id] = None
            if owner != SHARED:
                self._evicted(owner, len(taken), value)
            blocks += taken
        return blocks

    def remove(self, block: KVCacheBlock) -> None:
        """A free block is used again (prefix hit)."""
        self.num_free_blocks -= 1
        owner = self._list_of[block.block_id]
        if owner is None:
            self._plain.remove(block)
            return
        self._list_of[block.block_id] = None
        queue = self._by_owner[owner]
        queue.remove(block)
        if queue.num_free_blocks == 0:
            del self._by_owner[owner]
            self._order.drop(owner)

    def append(self, block: KVCacheBlock) -> None:
        """One cached block is free."""
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Cached blocks are free; they belong to the session named in ``freeing``.

        Without one (vLLM frees late what a step in flight may still write), to their last
        user; blocks that nobody is known to have used go first.
        """
        self.num_free_blocks += len(blocks)
        freeing, last = self.freeing, self._last_user
        names = [last[block.block_id] or freeing for block in blocks]
        if freeing is not None:
            names = [freeing if name == freeing else SHARED for name in names]
        # Runs of one owner: a turn's own blocks, and what it shares with others.
        start, num = 0, len(blocks)
        while start < num:
            name, end = names[start], start + 1
            while end < num and names[end] == name:
                end += 1
            self._append_run(name, blocks[start:end])
            start = end

    def _append_run(self, name: str | None, blocks: list[KVCacheBlock]) -> None:
        if name is None:
            self._plain.append_n(blocks)
            return
        queue = self._by_owner.get(name)
        if queue is None:
            queue = self._by_owner[name] = FreeKVCacheBlockQueue([])
            self._order.add(name)
        for block in blocks:
            self._list_of[block.block_id] = name
        queue.append_n(blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        """Blocks without content: used before all others."""
        self.num_free_blocks += len(blocks)
        for block in blocks:
            self._last_user[block.block_id] = None
        self._plain.prepend_n(blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """All free blocks in eviction order, as it is now; looking changes nothing."""
        blocks = self._plain.get_all_free_blocks()
        for owner in self._order.as_it_is():
            blocks += self._by_owner[owner].get_all_free_blocks()
        return blocks

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks behind ``cursor`` in eviction order; all of them for one that is not free.

        vLLM's simple KV offload asks at each step and stops early: O(1) per block that is
        looked at. No block may come or go meanwhile.
        """
        owner = None if cursor is None else self._list_of[cursor.block_id]
        if owner is None:
            yield from _behind(self._plain, cursor)
        order = self._order.owners()
        if owner is not None:
            yield from _behind(self._by_owner[owner], cursor)
            order = order[order.index(owner) + 1 :]
        for name in order:
            yield from _behind(self._by_owner[name], None)

    # --- what the plug-in calls ----------------------------------------------------------
    def use(self, session_id: str, blocks: Iterable[KVCacheBlock]) -> None:
        """Note who used these blocks last; two different users make a block shared."""
        last = self._last_user
        for block in blocks:
            before = last[block.block_id]
            if before is None:
                last[block.block_id] = session_id
            elif before != session_id:
                last[block.block_id] = SHARED

    def forget(self) -> None:
        """The prefix cache was reset: free blocks have no content and no owner any more."""
        for queue in self._by_owner.values():
            self._plain.prepend_n(queue.popleft_n(queue.num_free_blocks))
        self._by_owner.clear()
        self._list_of[:] = [None] * len(self._list_of)
        self._last_user[:] = [None] * len(self._last_user)
        self._order.clear()

    def problems(self) -> list[str]:
        """What is wrong with the bookkeeping, in words; nothing when it is sound."""
        found: list[str] = []
        listed: dict[int, str] = {}
        for owner, queue in self._by_owner.items():
            blocks = queue.get_all_free_blocks()
            if len(blocks) != queue.num_free_blocks or not blocks:
                found.append(f"list of {owner!r} counts {queue.num_free_blocks}, has {len(blocks)}")
            listed.update((block.block_id, owner) for block in blocks)
        recorded = {i: owner for i, owner in enumerate(self._list_of) if owner is not None}
        if listed != recorded:
            found.append(f"{len(listed)} blocks lie in lists, {len(recorded)} are recorded")
        total = self._plain.num_free_blocks + len(listed)
        if total != self.num_free_blocks:
            found.append(f"{self.num_free_blocks} free blocks counted, {total} present")
        return found

    def num_blocks_of(self, session_id: str) -> int:
        """Free cached blocks of one session."""
        queue = self._by_owner.get(session_id)
        return queue.num_free_blocks if queue else 0


def _behind(queue: FreeKVCacheBlockQueue, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
    """The blocks of one list behind ``cursor``, or all if that is None or in no list."""
    block = None if cursor is None else cursor.next_free_block
    block = block or queue.fake_free_list_head.next_free_block
    while block is not None and block is not queue.fake_free_list_tail:
        yield block
        block = block.next_free_block
