# SPDX-License-Identifier: Apache-2.0
"""The memory of the simulated engine: who gets blocks, and when blocks come back.

Follows ``KVCacheManager.allocate_slots`` and what ``Scheduler`` reserves and fences.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from mars.core.copies import HostMemory
from mars.core.coscheduler import CoScheduler
from mars.core.evictions import EvictionTally
from mars.sim.blocks import BlockPool, Hit, Table
from mars.sim.content import Span
from mars.sim.request import Request
from mars.sim.tier import Tier


@dataclass(slots=True, frozen=True)
class EngineShape:
    """What of vLLM's configuration decides a step.

    ``num_blocks`` counts as vLLM's ``num_gpu_blocks`` does: one of them is its null block.
    """

    num_blocks: int
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    watermark: float = 0.0
    is_async: bool = False

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can have."""
        return self.num_blocks - 1


class EngineMemory:
    """Blocks of the GPU and, where there is one, of the host tier.

    Args:
        co: hears of evictions.
        shape: pool and limits.
        host: host memory as a second tier; None: there is none.
    """

    def __init__(self, co: CoScheduler, shape: EngineShape, host: HostMemory | None) -> None:
        self.co = co
        self.shape = shape
        self._evictions = EvictionTally(co)
        self.pool = self._make_pool()
        self.tier = Tier(host, shape.block_size) if host is not None else None
        self.running: list[Request] = []
        self.loading: deque[Request] = deque()
        """Turns that wait for blocks from host memory, or have them and have not started."""
        self._passed: list[Request] = []
        """Those of them that this step has looked at."""
        self.num_steps = 0
        self._num_completed = 0
        self._fenced: deque[tuple[int, Table, str]] = deque()
        self._watermark_blocks = int(shape.watermark * shape.num_blocks)

    def quiet_until(self) -> float:
        """Until when decode steps leave host memory and its copies alone; -inf: from now on not."""
        if self.tier is None:
            return math.inf
        if self._fenced or not all(request.is_loading for request in self.loading):
            return -math.inf
        return self.tier.quiet_until(self.running)

    def count_steps(self, num_steps: int) -> None:
        """So many steps of all running turns were planned and completed in one go."""
        self.num_steps += num_steps
        self._num_completed += num_steps
        for request in self.running:
            request.last_step = self.num_steps

    def _make_pool(self) -> BlockPool:
        """The pool; a policy may replace it."""
        return BlockPool(self.shape.num_usable_blocks, self._evictions.take)

    def _allocate(self, request: Request, num_tokens: int) -> bool:
        """Blocks for the next tokens of a running request."""
        size = self.shape.block_size
        table, total = request.table, request.num_computed + num_tokens
        missing = -(-total // size) - table.num_blocks
        if missing > 0:
            if missing > self.pool.num_free:
                return False
            self.pool.take(table, missing)
        full = min(total, request.num_tokens) // size
        if full > table.num_cached:
            self.pool.cache(table, request.path, full)
        return True

    def _allocate_first(
        self, request: Request, num_tokens: int, hits: list[Hit], num_hit: int, num_load: int
    ) -> bool:
        """Blocks for the first chunk of a waiting request, if its whole prompt fits.

        With ``num_load``: for so many blocks that are copied from host memory first. They
        cannot be preempted, so room must be left for all prefills that have begun.
        """
        size, pool, table = self.shape.block_size, self.pool, request.table
        needed = self.num_needed(request, hits, num_hit)
        if needed > pool.num_free:
            return False
        if num_load:
            rest = -(-request.num_tokens // size) - num_hit - num_load
            if needed - max(0, rest) + self._num_reserved() > pool.num_free:
                return False
            pool.adopt(table, hits)
            pool.take(table, num_load)
            request.holds_blocks = request.is_loading = True
            request.num_computed = (num_hit + num_load) * size
            self.co.loading.begin(request.turn, request.num_computed)
            assert self.tier is not None
            self.tier.load(request, num_hit, num_hit + num_load)
            return True
        if request.holds_blocks:
            total = request.num_computed + num_tokens
        else:
            total = num_hit * size + num_tokens
            pool.adopt(table, hits)
        pool.take(table, max(0, -(-total // size) - num_hit))
        pool.cache(table, request.path, min(total, request.num_tokens) // size)
        return True

    def _num_reserved(self) -> int:
        """Blocks that begun prefills and loading turns still need for their prompts."""
        size = self.shape.block_size
        begun = [request for request in self.running if request.is_prefilling]
        return sum(
            max(0, -(-request.num_tokens // size) - request.table.num_blocks)
            for request in (*begun, *self.loading, *self._passed)
        )

    def _host_tokens(self, path: tuple[Span, ...], num_prompt: int) -> int | None:
        """Leading tokens of a prompt that host memory has; None: there is no host memory."""
        if self.tier is None:
            return None
        size = self.shape.block_size
        return size * self.tier.pool.num_leading(path, num_prompt // size)

    def num_needed(self, request: Request, hits: list[Hit], num_hit: int) -> int:
        """Free blocks that the whole prompt needs, those it hits among the free included."""
        needed = -(-request.num_tokens // self.shape.block_size) - num_hit
        needed += sum(hi - lo for extent, lo, hi in hits if not extent.tables)
        return needed + (self._watermark_blocks if self.running else 0)

    def _is_fenced(self, request: Request) -> bool:
        """Whether a step in flight may still write its blocks, which a load could then get."""
        return self.tier is not None and request.last_step > self._num_completed

    def _free(self, request: Request) -> None:
        """Give its blocks back, or keep them until the steps that write them are done."""
        if self._is_fenced(request):
            self._fenced.append((self.num_steps, request.table, request.session_id))
            request.table = Table()
        else:
            self.pool.free(request.table, request.session_id)

    def _free_fenced(self) -> None:
        """One more step is done: free what waited for it."""
        self._num_completed += 1
        while self._fenced and self._fenced[0][0] <= self._num_completed:
            _, table, owner = self._fenced.popleft()
            self.pool.free(table, owner)
