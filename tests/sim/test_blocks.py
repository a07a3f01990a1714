# SPDX-License-Identifier: Apache-2.0
"""The pool of runs against a pool of single blocks, written as vLLM's is."""

from __future__ import annotations

import random
from collections import deque

import pytest

from mars.sim.blocks import BlockPool, Table
from mars.sim.content import Contents, Span
from mars.sim.values import SHARED, ValuePool
from mars.traces.content import Segment

SIZE = 16
Name = tuple[int, int]


def names(path: tuple[Span, ...]) -> list[Name]:
    """One name per block."""
    return [(id(span.node), at) for span in path for at in range(span.lo, span.hi)]


class SingleBlocks:
    """vLLM's block pool block by block: free queue, reference counts, hash to copies."""

    def __init__(self, num_blocks: int) -> None:
        self.free = deque(range(num_blocks))
        self.uses = dict.fromkeys(range(num_blocks), 0)
        self.name: dict[int, Name] = {}
        self.copies: dict[Name, list[int]] = {}

    def lookup(self, prompt: list[Name]) -> list[int]:
        found: list[int] = []
        for name in prompt:
            if not self.copies.get(name):
                break
            found.append(self.copies[name][0])
        return found

    def adopt(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            if not self.uses[block]:
                self.free.remove(block)
            self.uses[block] += 1
        return list(blocks)

    def take(self, num_blocks: int) -> list[int]:
        taken = [self.free.popleft() for _ in range(num_blocks)]
        for block in taken:
            self.uses[block] = 1
            if block in self.name:
                self.copies[self.name.pop(block)].remove(block)
        return taken

    def cache(self, blocks: list[int], prompt: list[Name], num_full: int) -> None:
        for block, name in zip(blocks[:num_full], prompt, strict=False):
            if block not in self.name:
                self.name[block] = name
                self.copies.setdefault(name, []).append(block)

    def release(self, blocks: list[int]) -> None:
        first: list[int] = []
        for block in reversed(blocks):
            self.uses[block] -= 1
            if not self.uses[block]:
                if block in self.name:
                    self.free.append(block)
                else:
                    first.append(block)
        self.free.extendleft(reversed(first))


class Both:
    """The same deeds on both pools; every question must get the same answer."""

    def __init__(self, seed: int, num_blocks: int) -> None:
        self.rng = random.Random(seed)
        self.contents = Contents(SIZE)
        self.runs = BlockPool(num_blocks)
        self.single = SingleBlocks(num_blocks)
        self.live: list[tuple[Table, list[int], tuple[Span, ...]]] = []
        self.num_hits = self.num_splits = 0

    def prompt(self) -> tuple[Span, ...]:
        rng = self.rng
        parts = [Segment(rng.choice("abc"), rng.choice([0, 0, 8, 160]), rng.randrange(1, 400))]
        parts += [Segment(rng.choice("abc"), 0, rng.randrange(200))] * (rng.random() < 0.5)
        return self.contents.path(parts)

    def start(self) -> None:
        path = self.prompt()
        if not path:
            return
        limit = self.rng.randrange(1, path[-1].hi + 1)
        hits, num_hit = self.runs.lookup(path, limit)
        blocks = self.single.lookup(names(path)[:limit])
        assert num_hit == len(blocks)
        num_idle = sum(hi - lo for extent, lo, hi in hits if not extent.tables)
        assert num_idle == sum(not self.single.uses[b] for b in blocks)
        num_new = path[-1].hi - num_hit + self.rng.randrange(2)
        if num_idle + num_new > self.runs.num_free:
            return
        self.num_hits += num_hit
        self.num_splits += len(hits) > 1
        table = Table()
        self.runs.adopt(table, hits)
        self.runs.take(table, num_new)
        owned = self.single.adopt(blocks) + self.single.take(num_new)
        self.live.append((table, owned, path))

    def name_some(self) -> None:
        table, owned, path = self.rng.choice(self.live)
        last = min(path[-1].hi, table.num_blocks)
        num_full = self.rng.randrange(table.num_cached, last + 1)
        self.runs.cache(table, path, num_full)
        self.single.cache(owned, names(path), num_full)

    def hold(self) -> None:
        table, owned, path = self.rng.choice(self.live)
        kept = owned[: table.num_cached]
        self.single.adopt(kept)
        self.live.append((self.runs.share(table), kept, path))

    def end(self) -> None:
        table, owned, _ = self.live.pop(self.rng.randrange(len(self.live)))
        self.runs.free(table)
        self.single.release(owned)

    def step(self) -> None:
        deeds = [self.start, self.start]
        if self.live:
            deeds += [self.name_some, self.name_some, self.hold, self.end, self.end]
        self.rng.choice(deeds)()
        assert self.runs.num_free == len(self.single.free)


@pytest.mark.parametrize("seed", range(12))
def test_runs_answer_as_single_blocks_do(seed: int) -> None:
    both = Both(seed, num_blocks=80)
    for _ in range(1500):
        both.step()
    assert both.num_hits > 200
    assert both.num_splits > 5


def test_a_freed_prompt_loses_its_tail_first() -> None:
    contents, pool = Contents(SIZE), BlockPool(20)
    path = contents.path([Segment("a", 0, 10 * SIZE)])
    table = Table()
    pool.take(table, 10)
    pool.cache(table, path, 10)
    pool.free(table)
    pool.take(Table(), 14)
    assert pool.lookup(path, 10)[1] == 6


def fill(pool: BlockPool, path: tuple[Span, ...], owner: str) -> None:
    hits, num_hit = pool.lookup(path, path[-1].hi)
    table = Table()
    pool.adopt(table, hits)
    pool.take(table, path[-1].hi - num_hit)
    pool.cache(table, path, path[-1].hi)
    pool.free(table, owner)


def test_the_least_valued_session_is_evicted_first_and_shared_blocks_last() -> None:
    values = {"cheap": 1.0, "dear": 2.0}
    evicted: list[tuple[str, int]] = []
    pool = ValuePool(
        30,
        value=values.__getitem__,
        evicted=lambda session_id, num_blocks, _: evicted.append((session_id, num_blocks)),
        clock=lambda: 0.0,
    )
    contents = Contents(SIZE)
    common = Segment("common", 0, 10 * SIZE)
    dear = contents.path([common, Segment("dear", 0, 10 * SIZE)])
    cheap = contents.path([common, Segment("cheap", 0, 10 * SIZE)])
    fill(pool, dear, "dear")
    fill(pool, cheap, "cheap")
    pool.take(Table(), 15)
    assert evicted == [("cheap", 10), ("dear", 5)]
    assert pool.lookup(dear, 20)[1] == 15
    pool.take(Table(), 10)
    assert evicted[-1] == ("dear", 5)
    assert pool.lookup(cheap, 20)[1] == 5
    assert SHARED not in {owner for owner, _ in evicted}
