# SPDX-License-Identifier: Apache-2.0
"""vLLM's block pool with prefix caching, exact to the block, in runs instead of blocks.

What vLLM keeps per block (reference count, place in the free queue, hash) is equal for
whole runs of neighbours. An :class:`Extent` is such a run; it is split where two users
part. Which numbered block holds a content is not modelled: nothing depends on it.

The free queue (vLLM's ``FreeKVCacheBlockQueue``): blocks without a hash lie in front, their
order does not matter; cached ones follow, least recently freed first, and within one freed
request its tail before its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mars.sim.content import Node, Span


class Extent:
    """Cached copies of blocks ``lo`` to ``hi`` of a node that share one state.

    ``tables`` holds who references them; without any they are free and linked into a queue,
    that of ``owner`` where there is one per session. ``user`` is the session that used them
    last, where that matters.
    """

    __slots__ = ("after", "before", "hi", "lo", "node", "owner", "tables", "user")

    def __init__(self, node: Node | None, lo: int, hi: int) -> None:
        self.node = node
        self.lo = lo
        self.hi = hi
        self.tables: list[Table] = []
        self.before: Extent = self
        self.after: Extent = self
        self.owner = ""
        self.user = ""


Hit = tuple[Extent, int, int]
"""Part of an extent that serves a prompt: (extent, first block, end)."""


class Table:
    """The blocks of one request (or of one retained prefix), in order.

    The first ``num_cached`` of ``num_blocks`` have a hash and lie in ``extents``.
    """

    __slots__ = ("extents", "num_blocks", "num_cached", "span_index")

    def __init__(self) -> None:
        self.extents: list[Extent] = []
        self.num_blocks = 0
        self.num_cached = 0
        self.span_index = 0


Taken = Callable[[str, int], None]
"""Receives (session that freed them last, blocks) of what is given away."""


class FreeQueue:
    """Free cached extents, first to be evicted first: a ring with a sentinel."""

    __slots__ = ("num_blocks", "ring")

    def __init__(self) -> None:
        self.ring = Extent(None, 0, 0)
        self.num_blocks = 0

    def append(self, extent: Extent) -> None:
        """Free blocks go last."""
        _put_before(self.ring, extent)
        self.num_blocks += extent.hi - extent.lo

    def remove(self, extent: Extent) -> None:
        """Used again, or evicted."""
        extent.before.after, extent.after.before = extent.after, extent.before
        self.num_blocks -= extent.hi - extent.lo

    def evict(self, num_blocks: int, taken: Taken | None = None) -> None:
        """Forget the content of the first ``num_blocks`` blocks; ``taken`` hears whose."""
        left = num_blocks
        while left:
            extent = self.ring.after
            size = extent.hi - extent.lo
            if taken is not None:
                taken(extent.owner, min(size, left))
            if size > left:
                extent.hi -= left
                self.num_blocks -= left
                return
            self.remove(extent)
            assert extent.node is not None
            extent.node.extents.remove(extent)
            left -= size


class BlockPool:
    """All KV blocks of one engine, plain LRU as vLLM's.

    Args:
        num_blocks: usable blocks (vLLM keeps one more as its null block).
        taken: hears whose cached blocks are given away.
    """

    def __init__(self, num_blocks: int, taken: Taken | None = None) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self._num_plain = num_blocks
        self._queue = FreeQueue()
        self._taken = taken

    # --- questions ---------------------------------------------------------------------
    def lookup(self, path: Sequence[Span], max_blocks: int) -> tuple[list[Hit], int]:
        """The longest cached prefix, at most ``max_blocks``; of duplicates the oldest."""
        hits: list[Hit] = []
        at = 0
        for node, _, hi in path:
            stop = min(max_blocks, hi)
            while at < stop:
                end, found = stop, None
                for extent in node.extents:
                    if extent.lo > at:
                        end = min(end, extent.lo)
                    elif at < extent.hi:
                        found = extent
                        break
                if found is None:
                    return hits, at
                end = min(end, found.hi)
                hits.append((found, at, end))
                at = end
        return hits, at

    def must_evict(self, num_blocks: int) -> bool:
        """Whether taking so many blocks costs cached content."""
        return num_blocks > self._num_plain

    # --- deeds -------------------------------------------------------------------------
    def adopt(self, table: Table, hits: list[Hit]) -> None:
        """Reference a prefix hit; it becomes the head of an empty table."""
        extents: list[Extent] = []
        num_blocks = 0
        # From the back: cutting a tail off leaves earlier hits on the same extent valid.
        for extent, lo, hi in reversed(hits):
            part = self._cut(extent, lo, hi)
            if not part.tables:
                self._unlink(part)
                self.num_free -= hi - lo
            part.tables.append(table)
            extents.append(part)
            num_blocks += hi - lo
        extents.reverse()
        table.extents = extents
        table.num_blocks = table.num_cached = num_blocks

    def take(self, table: Table, num_blocks: int) -> None:
        """Give ``num_blocks`` free blocks to a table, evicting cached content if need be."""
        assert num_blocks <= self.num_free
        self.num_free -= num_blocks
        table.num_blocks += num_blocks
        if num_blocks <= self._num_plain:
            self._num_plain -= num_blocks
            return
        left = num_blocks - self._num_plain
        self._num_plain = 0
        self._evict(left)

    def cache(self, table: Table, path: Sequence[Span], num_full: int) -> None:
        """Name the first ``num_full`` blocks of a table, so that others can hit them."""
        at = table.num_cached
        while at < num_full:
            node, _, hi = path[table.span_index]
            if at >= hi:
                table.span_index += 1
                continue
            stop = min(hi, num_full)
            last = table.extents[-1] if table.extents else None
            if last is not None and _may_extend(last, node, at, stop):
                last.hi = stop
            else:
                extent = Extent(node, at, stop)
                extent.tables.append(table)
                table.extents.append(extent)
                node.extents.append(extent)
            at = stop
        table.num_cached = num_full

    def share(self, table: Table) -> Table:
        """A second reference on the cached blocks of a table (held over a tool call)."""
        held = Table()
        held.extents = list(table.extents)
        held.num_blocks = held.num_cached = table.num_cached
        for extent in held.extents:
            extent.tables.append(held)
        return held

    def free(self, table: Table, owner: str = "") -> None:
        """Drop a table's references: nameless blocks go first, cached ones last, tail first.

        ``owner``: the session it belongs to.
        """
        num_plain = table.num_blocks - table.num_cached
        self._num_plain += num_plain
        self.num_free += num_plain
        for extent in reversed(table.extents):
            extent.tables.remove(table)
            if not extent.tables:
                self._link(extent, owner)
                self.num_free += extent.hi - extent.lo
        table.extents = []
        table.num_blocks = table.num_cached = table.span_index = 0

    # --- splitting -----------------------------------------------------------------------
    def _cut(self, extent: Extent, lo: int, hi: int) -> Extent:
        """The extent of exactly these blocks."""
        if lo > extent.lo:
            extent = self._split(extent, lo)
        if hi < extent.hi:
            self._split(extent, hi)
        return extent

    def _split(self, extent: Extent, at: int) -> Extent:
        """Cut an extent in two; returns the tail, which is evicted before the head."""
        assert extent.node is not None
        tail = Extent(extent.node, at, extent.hi)
        tail.owner, tail.user = extent.owner, extent.user
        extent.hi = at
        siblings = extent.node.extents
        siblings.insert(siblings.index(extent) + 1, tail)
        tail.tables = list(extent.tables)
        for table in tail.tables:
            table.extents.insert(table.extents.index(extent) + 1, tail)
        if not tail.tables:
            _put_before(extent, tail)
        return tail

    # --- the free queue: what value-ordered eviction replaces ----------------------------
    def _link(self, extent: Extent, owner: str) -> None:
        extent.owner = owner
        self._queue.append(extent)

    def _unlink(self, extent: Extent) -> None:
        self._queue.remove(extent)

    def _evict(self, num_blocks: int) -> None:
        self._queue.evict(num_blocks, self._taken)


def _put_before(place: Extent, extent: Extent) -> None:
    last = place.before
    last.after = place.before = extent
    extent.before, extent.after = last, place


def _may_extend(last: Extent, node: Node, at: int, stop: int) -> bool:
    """Whether new blocks may join the extent before them: same state, and no duplicate of
    them exists, whose age among the copies would otherwise be lost."""
    if last.node is not node or last.hi != at or len(last.tables) != 1 or last.user:
        return False
    siblings = node.extents
    return len(siblings) == 1 or not any(other.lo < stop and at < other.hi for other in siblings)
