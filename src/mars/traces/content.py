# SPDX-License-Identifier: Apache-2.0
"""Which tokens a prompt consists of: exact sharing between turns and between sessions.

A prompt is a list of :class:`Segment`; equal (content id, position) is equal token, everywhere.
The simulator hashes blocks of segments, the replay client makes token ids of them, so both see
the same prefix-cache hits.

Without ``blocks`` a turn's prompt is the first ``reused_tokens`` of the previous turn's prompt and
reply (all of it where that is null), then content of its own. A ``shared_prefix`` is the head of
the prompt: reuse beyond it holds only when the previous turn began with the same content.

With ``blocks`` every block id is content of its own, the same in all sessions of one
``block_scope``. The last partial block, and the reply, are the beginning of what the next turn's
blocks say, where the next turn goes on from this one; else they belong to this turn alone.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mars.traces.schema import TraceSession, TraceTurn

FIRST_TOKEN = 16
"""Smallest token id; the ids below are left to the special tokens of small vocabularies."""
NUM_TOKENS = 224
"""How many ids are used: [16, 240) exists in every vocabulary, byte-level ones included."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Segment(NamedTuple):
    """``count`` tokens of one content, from position ``start`` on."""

    content_id: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All prompts and replies of one session, by turn index."""

    prompts: tuple[tuple[Segment, ...], ...]
    replies: tuple[Segment, ...]


@lru_cache(maxsize=65536)
def _seed(content_id: str) -> np.uint64:
    digest = hashlib.blake2b(content_id.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def filler_array(content_id: str, start: int, count: int) -> NDArray[np.uint8]:
    """Return ``count`` token ids of a content from position ``start`` on.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over the position, seeded by the
    content id; its highest byte is scaled into the range of ids.
    """
    x = np.arange(start, start + count, dtype=np.uint64)
    x *= _GOLDEN
    x += _seed(content_id)
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x >>= np.uint64(40)
    x *= np.uint64(NUM_TOKENS)
    x >>= np.uint64(24)
    tokens_ = x.astype(np.uint8)
    tokens_ += np.uint8(FIRST_TOKEN)
    return tokens_


def filler(content_id: str, start: int, count: int) -> list[int]:
    """Return ``count`` token ids in [16, 240) of a content from position ``start`` on."""
    return list(filler_array(content_id, start, count).tobytes())


def tokens(segments: Iterable[Segment]) -> list[int]:
    """Return the token ids of segments, in order (about 1 ms per 100,000 tokens)."""
    return list(b"".join(filler_array(*segment).tobytes() for segment in segments))


def num_tokens(segments: Iterable[Segment]) -> int:
    """Return the length of segments."""
    return sum(segment.count for segment in segments)


def cut(segments: Iterable[Segment], start: int, count: int) -> list[Segment]:
    """Return positions ``start`` to ``start + count`` of segments; less where they end earlier."""
    parts: list[Segment] = []
    stop = start + count
    position = 0
    for segment in segments:
        first, last = max(start, position), min(stop, position + segment.count)
        if first < last:
            parts.append(
                Segment(segment.content_id, segment.start + first - position, last - first)
            )
        position += segment.count
        if position >= stop:
            break
    return parts


def joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Return the same tokens in the fewest segments: empty ones dropped, adjoining ones merged."""
    merged: list[Segment] = []
    for segment in segments:
        if not segment.count:
            continue
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.content_id == segment.content_id
            and last.start + last.count == segment.start
        ):
            merged[-1] = last._replace(count=last.count + segment.count)
        else:
            merged.append(segment)
    return tuple(merged)


def common_prefix_tokens(left: Iterable[Segment], right: Iterable[Segment]) -> int:
    """Return how many leading tokens two prompts have in common by content."""
    common = 0
    for a, b in zip(joined(left), joined(right), strict=False):
        if (a.content_id, a.start) != (b.content_id, b.start):
            break
        common += min(a.count, b.count)
        if a.count != b.count:
            break
    return common


def layout(session: TraceSession) -> Layout:
    """Return all prompts and replies of a session; kept as long as the session lives."""
    key = id(session)
    known = _layouts.get(key)
    if known is not None and known[0]() is session:
        return known[1]
    result = _lay_out(session)
    _layouts[key] = (weakref.ref(session, lambda _: _layouts.pop(key, None)), result)
    return result


_layouts: dict[int, tuple[weakref.ref[TraceSession], Layout]] = {}


def prompt_segments(session: TraceSession, turn_index: int) -> list[Segment]:
    """Return the exact prompt of a turn, ``prompt_tokens`` long."""
    return list(layout(session).prompts[turn_index])


def reply_segment(session: TraceSession, turn_index: int) -> Segment:
    """Return what the engine emits in a turn, ``output_tokens`` long."""
    return layout(session).replies[turn_index]


def _lay_out(session: TraceSession) -> Layout:
    turns = session.turns
    recorded = _lay_out_blocks(session)
    own = f"session:{session.session_id}"
    num_own = 0
    prompts: list[tuple[Segment, ...]] = []
    replies: list[Segment] = []
    for index, turn in enumerate(turns):
        if (known := recorded.get(index)) is not None:
            prompt, reply = known
        else:
            before = (*prompts[-1], replies[-1]) if index else ()
            head = _head(turn, before)
            num_fresh = turn.prompt_tokens - num_tokens(head)
            prompt = joined([*head, Segment(own, num_own, num_fresh)])
            reply = Segment(own, num_own + num_fresh, turn.output_tokens)
            num_own += num_fresh + turn.output_tokens
        prompts.append(prompt)
        replies.append(reply)
    return Layout(tuple(prompts), tuple(replies))


def _head(turn: TraceTurn, before: Sequence[Segment]) -> list[Segment]:
    """Return the part of a prompt that existed before: of the turn before, or of other sessions."""
    available = num_tokens(before)
    reused = available if turn.reused_tokens is None else min(turn.reused_tokens, available)
    kept = cut(before, 0, min(reused, turn.prompt_tokens))
    if turn.shared_prefix is None:
        return kept
    name, num_shared = turn.shared_prefix
    shared = [Segment(f"shared:{name}", 0, num_shared)]
    num_kept = num_tokens(kept)
    agrees = common_prefix_tokens(kept, shared) >= min(num_kept, num_shared)
    return kept if agrees and num_kept > num_shared else shared


def _lay_out_blocks(session: TraceSession) -> dict[int, tuple[tuple[Segment, ...], Segment]]:
    """Lay out the turns with recorded blocks, last first: each leans on the one after it."""
    result: dict[int, tuple[tuple[Segment, ...], Segment]] = {}
    for index in reversed(range(len(session.turns))):
        turn = session.turns[index]
        if turn.blocks is None:
            continue
        following = result[index + 1][0] if index + 1 in result else ()
        own = f"turn:{session.session_id}:{index}"
        prompt = _block_prompt(turn, session.block_scope, own, following)
        result[index] = prompt, _block_reply(turn, prompt, own, following)
    return result


def _block_prompt(
    turn: TraceTurn, scope: str, own: str, following: Sequence[Segment]
) -> tuple[Segment, ...]:
    size = turn.block_size
    content_id = f"blocks:{scope}:{size}"
    named = [Segment(content_id, first * size, count * size) for first, count in turn.blocks or ()]
    num_named = min(num_tokens(named), turn.prompt_tokens)
    whole = cut(named, 0, num_named // size * size)
    num_whole = num_tokens(whole)
    tail: list[Segment] = []
    if num_whole and common_prefix_tokens(whole, following) == num_whole:
        tail = cut(following, num_whole, turn.prompt_tokens - num_whole)
    if not tail:
        tail = cut(named, num_whole, num_named - num_whole)
    num_missing = turn.prompt_tokens - num_whole - num_tokens(tail)
    return joined([*whole, *tail, Segment(own, 0, num_missing)])


def _block_reply(
    turn: TraceTurn, prompt: Sequence[Segment], own: str, following: Sequence[Segment]
) -> Segment:
    if common_prefix_tokens(prompt, following) == turn.prompt_tokens:
        next_part = cut(following, turn.prompt_tokens, turn.output_tokens)
        if next_part:
            return next_part[0]._replace(count=turn.output_tokens)
    # The first `prompt_tokens` positions are left to the prompt's own tail.
    return Segment(own, turn.prompt_tokens, turn.output_tokens)
