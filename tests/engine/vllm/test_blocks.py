# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("vllm")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from mars.engine.vllm.blocks import SHARED, ValueOrderedBlocks

pytestmark = pytest.mark.vllm


class Blocks:
    """A queue over ``n`` blocks, with settable values and a clock that always re-ranks."""

    def __init__(self, n: int) -> None:
        self.blocks = [KVCacheBlock(i) for i in range(n)]
        self.values: dict[str, float] = {}
        self.evicted: list[tuple[str, int]] = []
        self.now = 0.0
        self.queue = ValueOrderedBlocks(
            FreeKVCacheBlockQueue(self.blocks),
            value=lambda owner: self.values.get(owner, 0.0),
            evicted=lambda owner, n, _: self.evicted.append((owner, n)),
            clock=self.tick,
        )

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def free_cached(self, owner: str, blocks: list[KVCacheBlock]) -> None:
        self.queue.use(owner, blocks)
        self.queue.freeing = owner
        self.queue.append_n(blocks)
        self.queue.freeing = None


def ids(blocks: list[KVCacheBlock]) -> list[int]:
    return [b.block_id for b in blocks]


def test_blocks_without_content_go_before_any_cached_one() -> None:
    b = Blocks(4)
    taken = b.queue.popleft_n(4)
    b.free_cached("a", taken[:2])
    b.queue.prepend_n(taken[2:])
    assert ids(b.queue.popleft_n(2)) == ids(taken[2:])
    assert b.evicted == []


def test_the_least_valued_session_loses_its_tail_first() -> None:
    b = Blocks(6)
    taken = b.queue.popleft_n(6)
    b.free_cached("cheap", list(reversed(taken[:3])))
    b.free_cached("dear", list(reversed(taken[3:])))
    b.values.update(cheap=1.0, dear=2.0)
    assert ids(b.queue.popleft_n(2)) == [2, 1]
    assert b.evicted == [("cheap", 2)]
    assert ids(b.queue.popleft_n(2)) == [0, 5]
    assert b.evicted[1:] == [("cheap", 1), ("dear", 1)]


def test_a_prefix_used_by_two_sessions_outlives_both() -> None:
    b = Blocks(4)
    taken = b.queue.popleft_n(4)
    b.free_cached("a", [taken[1], taken[0]])
    b.queue.remove(taken[0])
    b.free_cached("b", [taken[2], taken[0]])
    b.values.update(a=5.0, b=9.0)
    assert b.queue.num_blocks_of("a") == 1
    assert b.queue.num_blocks_of(SHARED) == 1
    b.queue.prepend_n([taken[3]])
    assert ids(b.queue.popleft_n(4)) == [3, 1, 2, 0]


def test_values_are_asked_again_as_time_goes_by() -> None:
    b = Blocks(2)
    taken = b.queue.popleft_n(2)
    b.free_cached("a", [taken[0]])
    b.free_cached("b", [taken[1]])
    b.values.update(a=1.0, b=2.0)
    assert ids(b.queue.get_all_free_blocks()) == [0, 1]
    b.values.update(a=3.0)
    assert ids(b.queue.popleft_n(2)) == [1, 0]


def test_popping_from_an_empty_queue_says_so() -> None:
    b = Blocks(1)
    b.queue.popleft()
    with pytest.raises(ValueError, match="No free blocks"):
        b.queue.popleft()


def test_iteration_continues_behind_the_cursor() -> None:
    b = Blocks(3)
    taken = b.queue.popleft_n(3)
    b.free_cached("a", taken)
    assert ids(list(b.queue.iter_blocks_after(taken[0]))) == [1, 2]
    assert ids(list(b.queue.iter_blocks_after(None))) == [0, 1, 2]


def test_iteration_goes_through_every_list_in_eviction_order_from_any_cursor() -> None:
    b = Blocks(9)
    taken = b.queue.popleft_n(7)
    b.free_cached("dear", taken[:2])
    b.free_cached("cheap", taken[2:4])
    b.free_cached("middle", taken[4:6])
    b.values.update(cheap=1.0, middle=2.0, dear=3.0)
    everything = ids(b.queue.get_all_free_blocks())
    assert everything == [7, 8, 2, 3, 4, 5, 0, 1]
    for at, number in enumerate(everything):
        behind = b.queue.iter_blocks_after(b.blocks[number])
        assert ids(list(behind)) == everything[at + 1 :]
    in_use = taken[6]
    assert ids(list(b.queue.iter_blocks_after(in_use))) == everything


def test_a_look_at_the_first_blocks_neither_ranks_nor_lists_the_others() -> None:
    b = Blocks(4)
    b.free_cached("a", b.queue.popleft_n(2))
    before = b.now
    assert next(b.queue.iter_blocks_after(None)).block_id == 2
    assert b.now == before


class Conservation(RuleBasedStateMachine):
    """However blocks go in and out, none is lost and none is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Blocks(24)
        self.out: list[KVCacheBlock] = []

    @rule(n=st.integers(1, 8))
    def take(self, n: int) -> None:
        n = min(n, self.b.queue.num_free_blocks)
        if n:
            self.out += self.b.queue.popleft_n(n)

    @precondition(lambda self: self.out)
    @rule(n=st.integers(1, 8), owner=st.sampled_from("abcd"), value=st.floats(-5, 5))
    def give_back_cached(self, n: int, owner: str, value: float) -> None:
        blocks, self.out = self.out[:n], self.out[n:]
        self.b.values[owner] = value
        self.b.free_cached(owner, blocks)

    @precondition(lambda self: self.out)
    @rule(n=st.integers(1, 8))
    def give_back_empty(self, n: int) -> None:
        blocks, self.out = self.out[:n], self.out[n:]
        self.b.queue.prepend_n(blocks)

    @precondition(lambda self: self.b.queue.num_free_blocks)
    @rule(at=st.integers(0, 23))
    def hit(self, at: int) -> None:
        free = self.b.queue.get_all_free_blocks()
        block = free[at % len(free)]
        self.b.queue.remove(block)
        self.out.append(block)

    @invariant()
    def every_block_is_somewhere_once(self) -> None:
        free = ids(self.b.queue.get_all_free_blocks())
        assert len(free) == self.b.queue.num_free_blocks
        assert sorted(free + ids(self.out)) == list(range(24))


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
