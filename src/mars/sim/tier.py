# SPDX-License-Identifier: Apache-2.0
"""Host memory behind the simulated engine: vLLM's native KV offloading in virtual time.

Follows ``OffloadingConnectorScheduler`` and ``CPUOffloadingManager`` of vLLM 0.32 with one
full-attention group and one block a chunk: every full block of a prompt is stored as it is
computed (a reply's with the next prompt), the least recently used leave, and a turn that
finds blocks here and not on the GPU waits while they are copied. Blocks are named by
content (``sim.content``).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from mars.core.copies import HostMemory, StepCopies
from mars.sim.content import Node, Span
from mars.sim.request import Request

Key = tuple[Node, int]
"""A block by its content: (node, index in the prompt)."""


class HostPool:
    """Blocks in host memory, least recently used first.

    A block has a reference count: -1 while it is being written, else the copies that read
    it; it can leave at 0.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.references: OrderedDict[Key, int] = OrderedDict()

    def store(self, keys: Sequence[Key]) -> list[Key] | None:
        """Make room for those of ``keys`` that are not here; which. None: there is no room."""
        references = self.references
        missing = [key for key in keys if key not in references]
        num_short = len(missing) - (self.num_blocks - len(references))
        if num_short > 0:
            victims = self._victims(num_short, set(keys))
            if len(victims) < num_short:
                return None
            for key in victims:
                del references[key]
        for key in missing:
            references[key] = -1
        return missing

    def used(self, keys: Iterable[Key]) -> None:
        """These were used last, the last of them the last."""
        references = self.references
        for key in keys:
            if key in references:
                references.move_to_end(key)

    def num_leading(self, path: Sequence[Span], num_blocks: int) -> int:
        """Leading blocks of a prompt that are here, by bisection: tails leave before heads."""
        keys = list(_keys(path, 0, num_blocks))
        return bisect_left(keys, True, key=lambda key: key not in self.references)

    def _victims(self, num_blocks: int, spared: set[Key]) -> list[Key]:
        victims: list[Key] = []
        for key, count in self.references.items():
            if count == 0 and key not in spared:
                victims.append(key)
                if len(victims) == num_blocks:
                    break
        return victims


class _Copy:
    """A copy under way."""

    __slots__ = ("is_store", "keys", "loose", "request")

    def __init__(self, request: Request, keys: list[Key], *, is_store: bool) -> None:
        self.request = request
        self.keys = keys
        self.is_store = is_store
        self.loose: list[Key] = []
        """Blocks that the GPU may give to others before they are copied."""


class Tier:
    """What the engine asks, in the order of one step: ``match`` and ``load`` while it
    schedules, ``begin`` and ``end`` around the forward, ``apply`` with its result.

    Args:
        host: size and link.
        block_size: tokens of a block.
    """

    def __init__(self, host: HostMemory, block_size: int) -> None:
        self.copies = StepCopies(host.link)
        self.pool = HostPool(host.num_blocks)
        self._bytes_per_block = host.bytes_per_block
        self._size = block_size
        self._under_way: dict[int, _Copy] = {}
        self._of: dict[Request, set[int]] = {}
        self._seen: dict[Request, dict[Key, int]] = {}
        self._being_loaded: set[Key] = set()
        self._finished: list[Request] = []
        self._preempted: list[Request] = []
        self._loads: dict[int, int] = {}
        self._stores: dict[int, int] = {}
        self._results: deque[list[int]] = deque()
        self._num_copies = 0
        self._free_at = 0.0
        self._begin = 0.0
        self._flushed_at = 0.0

    # --- stretches of decode -----------------------------------------------------------------
    @property
    def is_copying(self) -> bool:
        """Whether a copy is under way or noted."""
        return bool(self._under_way)

    def quiet_until(self, running: Iterable[Request]) -> float:
        """Until when steps in which these turns decode change nothing here; -inf: the next may.

        The next copy that is done ends it. What is yet to be stored or submitted, and copies
        whose blocks the GPU may give away meanwhile, are looked at step by step.
        """
        if self._finished or self._preempted or self.copies.has_deferred or any(self._results):
            return -math.inf
        if any(request.num_prompt // self._size > request.num_stored for request in running):
            return -math.inf
        if any(copy.loose for copy in self._under_way.values()):
            return -math.inf
        next_end = self.copies.engine.next_end
        return math.inf if next_end is None else next_end

    def leapt(self, free_at: float) -> None:
        """A stretch of decode steps was run; the last of them ends at ``free_at``."""
        self._free_at = free_at

    # --- while the engine schedules ----------------------------------------------------------
    def arrived(self, request: Request) -> None:
        """A turn is there."""
        self._of[request] = set()
        self._seen[request] = {}

    def match(self, request: Request, num_hit: int) -> int | None:
        """Blocks that can be loaded after ``num_hit`` on the GPU; None: ask again later."""
        if self._of[request]:
            return None
        references = self.pool.references
        num_found, is_pending = 0, False
        for key in _keys(request.path, num_hit, request.num_tokens // self._size):
            count = references.get(key)
            if count is None:
                break
            is_pending |= count < 0 or key in self._being_loaded
            num_found += 1
        return None if is_pending else num_found

    def load(self, request: Request, lo: int, hi: int) -> None:
        """Copy blocks ``lo`` to ``hi`` of a turn to the GPU."""
        keys = list(_keys(request.path, lo, hi))
        for key in keys:
            self.pool.references[key] += 1
        self._note(request, keys)
        self._being_loaded.update(keys)
        request.num_stored = hi
        self._loads[self._new_copy(request, keys, is_store=False)] = self._num_bytes(keys)

    def preempted(self, request: Request) -> None:
        """Its blocks are free: what is copied from them must be done before the step."""
        self._preempted.append(request)

    def finished(self, request: Request) -> None:
        """A turn has ended."""
        self._finished.append(request)

    # --- around the forward -------------------------------------------------------------------
    def begin(self, chosen: Sequence[tuple[Request, int]], now: float) -> None:
        """Stores of this step, and what it must wait for."""
        flushed = {copy for request in self._preempted for copy in self._of[request]}
        flushed |= {copy_id for copy_id, copy in self._under_way.items() if _is_taken(copy)}
        self._preempted.clear()
        for request, num_tokens in chosen:
            self._store(request, request.num_computed + num_tokens)
        for request in self._finished:
            self._store(request, request.num_prompt)
            for copy_id in self._of[request]:
                copy = self._under_way[copy_id]
                copy.loose = [key for key in copy.keys if _is_free(key)]
                if not all(map(_is_cached, copy.keys)):
                    flushed.add(copy_id)
            seen = self._seen.pop(request)
            self.pool.used(sorted(seen, key=seen.__getitem__, reverse=True))
        self._finished.clear()
        self._begin = max(now, self._free_at)
        self._flushed_at = self.copies.before(self._stores, flushed, now, self._free_at)

    def end(self, step_s: float, now: float) -> float:
        """How long the step takes with what it waits for; its loads start behind it."""
        total_s = max(0.0, self._flushed_at - self._begin) + step_s
        self._free_at = self._begin + total_s
        self._results.append(self._after(now))
        return total_s

    def idle(self, now: float) -> None:
        """Nothing was scheduled: what is done by now is applied at once."""
        self._apply(self._after(now))

    def apply(self) -> None:
        """Take the copies that the oldest step without result reported."""
        self._apply(self._results.popleft())

    # --- inner ----------------------------------------------------------------------------------
    def _after(self, now: float) -> list[int]:
        done = self.copies.after(
            self._stores, self._loads, max(now, self._flushed_at), self._free_at
        )
        self._stores, self._loads = {}, {}
        return done

    def _apply(self, copy_ids: list[int]) -> None:
        references = self.pool.references
        for copy_id in copy_ids:
            copy = self._under_way.pop(copy_id)
            change = 1 if copy.is_store else -1
            for key in copy.keys:
                references[key] += change
            if not copy.is_store:
                self._being_loaded.difference_update(copy.keys)
                copy.request.is_loading = False
            copies = self._of[copy.request]
            copies.remove(copy_id)
            if not copies and copy.request not in self._seen:
                del self._of[copy.request]

    def _store(self, request: Request, num_tokens: int) -> int | None:
        """Copy what is new of a turn's full blocks to the host; the copy, if there is one."""
        num_full = min(num_tokens, request.num_prompt) // self._size
        if num_full <= request.num_stored:
            return None
        lo = request.num_stored
        keys = list(_keys(request.path, lo, num_full))
        ready = [key for key in keys if self.pool.references.get(key, -1) >= 0]
        stored = self.pool.store(keys)
        if stored is None:
            self._note(request, [key for key in keys if key in self.pool.references])
            return None
        positions = set(stored).union(ready)
        self._note(request, [key for key in keys if key in positions])
        request.num_stored = num_full
        if not stored:
            return None
        copy_id = self._new_copy(request, stored, is_store=True)
        self._stores[copy_id] = self._num_bytes(stored)
        return copy_id

    def _note(self, request: Request, keys: Iterable[Key]) -> None:
        seen = self._seen[request]
        for key in keys:
            seen.setdefault(key, key[1])

    def _new_copy(self, request: Request, keys: list[Key], *, is_store: bool) -> int:
        self._num_copies += 1
        self._under_way[self._num_copies] = _Copy(request, keys, is_store=is_store)
        self._of[request].add(self._num_copies)
        return self._num_copies

    def _num_bytes(self, keys: Sequence[Key]) -> int:
        return len(keys) * self._bytes_per_block


def _keys(path: Sequence[Span], lo: int, hi: int) -> Iterator[Key]:
    for node, first, end in path:
        for index in range(max(lo, first), min(hi, end)):
            yield node, index


def _is_free(key: Key) -> bool:
    """Whether the GPU has a copy of the block that nobody uses."""
    node, index = key
    return any(e.lo <= index < e.hi and not e.tables for e in node.extents)


def _is_taken(copy: _Copy) -> bool:
    """Whether a loose block of a store was given to somebody since."""
    return any(not _is_free(key) for key in copy.loose)


def _is_cached(key: Key) -> bool:
    """Whether the GPU has the block."""
    node, index = key
    return any(e.lo <= index < e.hi for e in node.extents)
