# SPDX-License-Identifier: Apache-2.0
"""Prompts have the declared length and share exactly what the trace declares, nothing else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mars.traces.content import (
    Segment,
    common_prefix_tokens,
    cut,
    filler,
    joined,
    num_tokens,
    prompt_segments,
    reply_segment,
    tokens,
)
from mars.traces.schema import TraceSession, TraceTurn


def common_tokens(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


@st.composite
def reusing_turns(draw: st.DrawFn) -> TraceTurn:
    prompt_tokens = draw(st.integers(1, 400))
    shared = draw(st.one_of(st.none(), st.integers(0, prompt_tokens)))
    return TraceTurn(
        prompt_tokens=prompt_tokens,
        output_tokens=draw(st.integers(1, 60)),
        reused_tokens=draw(st.one_of(st.none(), st.integers(0, 500))),
        shared_prefix=None if shared is None else (draw(st.sampled_from("xy")), shared),
    )


@st.composite
def block_turns(draw: st.DrawFn) -> TraceTurn:
    runs = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=4))
    num_blocks = sum(count for _, count in runs)
    return TraceTurn(
        prompt_tokens=max(1, num_blocks * 8 + draw(st.integers(-7, 20))),
        output_tokens=draw(st.integers(1, 60)),
        blocks=tuple(runs),
        block_size=8,
    )


TURNS = st.lists(reusing_turns(), min_size=1, max_size=6)
ANY_TURNS = st.lists(st.one_of(reusing_turns(), block_turns()), min_size=1, max_size=6)


def test_filler_is_a_function_of_content_and_position() -> None:
    whole = filler("a", 0, 5000)
    assert filler("a", 100, 300) == whole[100:400]
    assert min(whole) >= 16
    assert max(whole) < 240
    assert len(set(whole)) == 224
    assert filler("b", 0, 5000) != whole


def test_the_ids_of_a_content_never_change() -> None:
    # Recorded results depend on these: a change here changes every replay.
    assert filler("session:s1", 0, 8) == [223, 60, 134, 197, 227, 24, 199, 145]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 50))))
def test_joining_and_cutting_keep_every_token(parts: list[tuple[str, int, int]]) -> None:
    segments = [Segment(*part) for part in parts]
    ids = tokens(segments)
    assert tokens(joined(segments)) == ids
    assert len(ids) == num_tokens(segments)
    assert tokens(cut(segments, 7, 40)) == ids[7:47]


@given(ANY_TURNS)
def test_lengths_are_exact(turns: list[TraceTurn]) -> None:
    session = TraceSession(session_id="s", turns=tuple(turns))
    for index, turn in enumerate(turns):
        assert len(tokens(prompt_segments(session, index))) == turn.prompt_tokens
        assert reply_segment(session, index).count == turn.output_tokens


@settings(max_examples=200)
@given(TURNS)
def test_a_turn_shares_with_the_one_before_exactly_what_it_declares(
    turns: list[TraceTurn],
) -> None:
    session = TraceSession(session_id="s", turns=tuple(turns))
    for index in range(1, len(turns)):
        turn = turns[index]
        before = [*prompt_segments(session, index - 1), reply_segment(session, index - 1)]
        prompt = prompt_segments(session, index)
        found = common_prefix_tokens(before, prompt)
        reused = num_tokens(before) if turn.reused_tokens is None else turn.reused_tokens
        declared = min(reused, num_tokens(before), turn.prompt_tokens)
        if turn.shared_prefix is None:
            assert found == declared
            continue
        shared = [Segment(f"shared:{turn.shared_prefix[0]}", 0, turn.shared_prefix[1])]
        assert cut(prompt, 0, turn.shared_prefix[1]) == list(joined(shared))
        head = common_prefix_tokens(before, shared)
        if head < min(declared, turn.shared_prefix[1]):
            assert found == head
        else:
            assert found >= min(declared, turn.prompt_tokens)


@given(TURNS, TURNS)
def test_sessions_share_their_declared_prefix_and_nothing_else(
    left: list[TraceTurn], right: list[TraceTurn]
) -> None:
    a = TraceSession(session_id="a", turns=tuple(left))
    b = TraceSession(session_id="b", turns=tuple(right))
    for i in range(len(left)):
        for j in range(len(right)):
            contents = {
                segment.content_id for segment in [*prompt_segments(a, i), reply_segment(a, i)]
            } & {segment.content_id for segment in [*prompt_segments(b, j), reply_segment(b, j)]}
            assert all(name.startswith("shared:") for name in contents)


def test_a_common_prefix_is_common_up_to_its_declared_length() -> None:
    def session(name: str, shared: int) -> TraceSession:
        turn = TraceTurn(prompt_tokens=900, output_tokens=5, shared_prefix=("tools", shared))
        return TraceSession(
            session_id=name, turns=(turn, TraceTurn(prompt_tokens=1000, output_tokens=5))
        )

    a, b = session("a", 700), session("b", 500)
    assert common_prefix_tokens(prompt_segments(a, 0), prompt_segments(b, 0)) == 500
    left, right = tokens(prompt_segments(a, 1)), tokens(prompt_segments(b, 1))
    assert left[:500] == right[:500]
    assert common_tokens(left, right) < 510


def test_a_compaction_keeps_the_head_and_drops_the_rest() -> None:
    turns = (
        TraceTurn(prompt_tokens=900, output_tokens=50, shared_prefix=("tools", 300)),
        TraceTurn(prompt_tokens=500, output_tokens=9, reused_tokens=320),
        TraceTurn(prompt_tokens=600, output_tokens=9),
    )
    session = TraceSession(session_id="s", turns=turns)
    first, second, third = (prompt_segments(session, k) for k in range(3))
    assert common_prefix_tokens(first, second) == 320
    assert common_prefix_tokens(second, third) == 500
    assert tokens([*second, reply_segment(session, 1)]) == tokens(third)[:509]


@given(st.lists(block_turns(), min_size=2, max_size=5))
def test_equal_block_chains_are_equal_tokens_in_every_session(turns: list[TraceTurn]) -> None:
    a = TraceSession(session_id="a", turns=tuple(turns))
    b = TraceSession(session_id="b", turns=tuple(reversed(turns)))
    apart = TraceSession(session_id="c", turns=tuple(turns), block_scope="elsewhere")
    last = len(turns) - 1
    for index, turn in enumerate(turns):
        named = min(sum(count for _, count in turn.blocks or ()), turn.prompt_tokens // 8) * 8
        ids = tokens(prompt_segments(a, index))
        assert tokens(prompt_segments(b, last - index))[:named] == ids[:named]
        assert common_prefix_tokens(prompt_segments(apart, index), prompt_segments(a, index)) == 0


@given(st.integers(0, 2**36), st.integers(0, 2**36), st.integers(1, 70))
def test_different_blocks_are_different_tokens(left: int, right: int, size: int) -> None:
    def block(name: int) -> Segment:
        turn = TraceTurn(prompt_tokens=size, output_tokens=1, blocks=((name, 1),), block_size=size)
        return prompt_segments(TraceSession(session_id=str(name), turns=(turn,)), 0)[0]

    a, b = block(left), block(right)
    assert (a.content_id, a.count) == (b.content_id, b.count)
    if left == right:
        assert a == b
    else:
        assert abs(a.start - b.start) >= size


@given(st.lists(st.one_of(reusing_turns(), block_turns()), min_size=1, max_size=6))
def test_own_content_is_used_once(turns: list[TraceTurn]) -> None:
    """No token of a session's own stands twice in one prompt, nor in the reply to it."""
    session = TraceSession(session_id="s", turns=tuple(turns))
    for index in range(len(turns)):
        reply = reply_segment(session, index)
        own = [s for s in prompt_segments(session, index) if ":s" in s.content_id]
        spans = sorted((s.content_id, s.start, s.start + s.count) for s in [*own, reply])
        for (name, _, end), (other, start, _) in pairwise(spans):
            assert name != other or end <= start


def test_a_common_prefix_ends_where_a_segment_does() -> None:
    left = [Segment("a", 0, 10), Segment("b", 0, 5)]
    right = [Segment("a", 0, 20), Segment("b", 0, 5)]
    assert common_prefix_tokens(left, right) == 10
    assert common_prefix_tokens(left, left) == 15
    assert common_prefix_tokens(left, [Segment("a", 0, 4), *cut(left, 4, 11)]) == 15


def test_a_prompt_below_one_block_is_not_taken_from_the_next_turn() -> None:
    turns = (
        TraceTurn(prompt_tokens=30, output_tokens=5, blocks=((3, 1),)),
        TraceTurn(prompt_tokens=200, output_tokens=5, blocks=((9, 3),)),
    )
    session = TraceSession(session_id="s", turns=turns)
    assert prompt_segments(session, 0) == [Segment("blocks::64", 3 * 64, 30)]


def test_the_reply_is_what_the_next_turns_blocks_say() -> None:
    turns = (
        TraceTurn(prompt_tokens=130, output_tokens=100, blocks=((7, 2),)),
        TraceTurn(prompt_tokens=300, output_tokens=40, blocks=((7, 2), (50, 2))),
        TraceTurn(prompt_tokens=200, output_tokens=40, blocks=((7, 1), (90, 2))),
    )
    session = TraceSession(session_id="s", turns=turns)
    said = tokens([*prompt_segments(session, 0), reply_segment(session, 0)])
    assert said == tokens(prompt_segments(session, 1))[:230]
    # The third turn compacts: only the first block stays, the second reply is nobody's prompt.
    before = [*prompt_segments(session, 1), reply_segment(session, 1)]
    assert common_prefix_tokens(before, prompt_segments(session, 2)) == 64
    assert reply_segment(session, 1).content_id == "turn:s:1"
    assert reply_segment(session, 1).start >= 300 - 4 * 64


def test_a_partial_last_block_with_an_id_is_the_head_of_that_block() -> None:
    turn = TraceTurn(prompt_tokens=700, output_tokens=9, blocks=((4, 2),), block_size=512)
    a = TraceSession(session_id="a", turns=(turn,))
    b = TraceSession(session_id="b", turns=(turn,))
    assert prompt_segments(a, 0) == prompt_segments(b, 0)
    assert common_prefix_tokens(prompt_segments(a, 0), [reply_segment(a, 0)]) == 0


def test_a_layout_follows_its_own_session() -> None:
    # Sessions come and go in a stream; a new one at an old address must not get the old layout.
    for length in range(1, 200):
        session = TraceSession(
            session_id="s", turns=(TraceTurn(prompt_tokens=length, output_tokens=1),)
        )
        assert num_tokens(prompt_segments(session, 0)) == length
        del session
