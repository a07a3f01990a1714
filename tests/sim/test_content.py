# SPDX-License-Identifier: Apache-2.0
"""Paths name blocks as hashes would: equal exactly when the whole prefix is."""

import random

from mars.sim.content import STRIDE, Anchor, Contents
from mars.traces.content import Segment, tokens

SIZE = 16


def num_common_blocks(contents: Contents, left: list[Segment], right: list[Segment]) -> int:
    common = 0
    for a, b in zip(contents.path(left), contents.path(right), strict=False):
        if a.node is not b.node:
            break
        common = min(a.hi, b.hi)
        if a.hi != b.hi:
            break
    return common


def test_one_content_is_one_span_however_it_is_cut() -> None:
    contents = Contents(SIZE)
    whole = contents.path([Segment("a", 0, 1000)])
    assert len(whole) == 1
    assert (whole[0].lo, whole[0].hi) == (0, 1000 // SIZE)
    assert contents.path([Segment("a", 0, 7), Segment("a", 7, 0), Segment("a", 7, 993)]) == whole


def test_an_extended_prompt_keeps_its_blocks_and_a_jump_does_not() -> None:
    contents = Contents(SIZE)
    before = [Segment("a", 0, 100)]
    assert num_common_blocks(contents, before, [Segment("a", 0, 500)]) == 6
    # The same content from another position on is other content.
    assert num_common_blocks(contents, before, [Segment("a", 0, 64), Segment("a", 80, 100)]) == 4
    assert num_common_blocks(contents, before, [Segment("a", 1, 100)]) == 0


def test_common_blocks_are_those_of_the_token_ids() -> None:
    rng = random.Random(5)
    contents = Contents(SIZE)

    def prompt() -> list[Segment]:
        return [
            Segment(rng.choice("ab"), rng.choice([0, 16, 40]), rng.choice([3, 16, 40, 100]))
            for _ in range(rng.randrange(1, 5))
        ]

    num_shared = 0
    for _ in range(2000):
        left, right = prompt(), prompt()
        ours, theirs = tokens(left), tokens(right)
        equal = 0
        while ours[equal : equal + 1] and ours[equal : equal + 1] == theirs[equal : equal + 1]:
            equal += 1
        found = num_common_blocks(contents, left, right)
        num_shared += found > 0
        # Token ids of different contents agree by chance once in 224: never in a whole piece.
        assert found <= equal // SIZE
        if equal // SIZE != found:
            assert equal % SIZE < 3
    assert num_shared > 100


def test_the_anchor_counts_as_the_plug_in_does() -> None:
    contents = Contents(SIZE)
    anchor = Anchor.of(contents.path([Segment("a", 0, 100 * SIZE)]))
    assert anchor is not None
    assert anchor.num_blocks == 100
    extended = contents.path([Segment("a", 0, 200 * SIZE)])
    assert anchor.reusable_blocks(extended, 200) == 100
    compacted = contents.path([Segment("a", 0, 70 * SIZE), Segment("b", 0, 50 * SIZE)])
    assert anchor.reusable_blocks(compacted, 120) == 70 // STRIDE * STRIDE
    assert anchor.reusable_blocks(contents.path([Segment("c", 0, 999)]), 62) == 0
    assert Anchor.of(contents.path([Segment("a", 0, SIZE - 1)])) is None
