# SPDX-License-Identifier: Apache-2.0
"""Block identity without hashing: prompts as paths through a tree of contents.

vLLM names a block by the hash of its tokens and of all before it. Two blocks are equal
exactly when their whole prefixes are, so the tree of prefixes says the same: a node is a
run of blocks that one content fills in sequence, its children are what may follow. A
60,000-token prompt of one content is one span, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

STRIDE = 32
"""The plug-in keeps one block hash in so many (``mars.engine.vllm.prefix``)."""

Piece = tuple[str, int, int]
"""(content id, first position, tokens): part of one block."""


class Node:
    """A run of blocks of one content after one prefix; what of it is in the cache."""

    __slots__ = ("children", "extents")

    def __init__(self) -> None:
        self.children: dict[tuple[int, tuple[Piece, ...]], Node] = {}
        self.extents: list[Any] = []
        """Cached copies of parts of the run, the first made first (``blocks.Extent``)."""


class Span(NamedTuple):
    """Blocks ``lo`` to ``hi`` (exclusive) of a prompt, all on one node."""

    node: Node
    lo: int
    hi: int


class Anchor(NamedTuple):
    """What a session had computed when its last turn finished."""

    path: tuple[Span, ...]
    num_blocks: int

    @classmethod
    def of(cls, path: tuple[Span, ...]) -> Anchor | None:
        """The anchor of a finished turn; None when it had no full block."""
        return cls(path, path[-1].hi) if path else None

    def reusable_blocks(self, path: Sequence[Span], num_blocks: int) -> int:
        """Leading blocks that the first ``num_blocks`` of a new prompt share with it.

        As in the plug-in: exact where the old prompt was extended, else in steps of
        ``STRIDE`` blocks.
        """
        common = 0
        for ours, theirs in zip(self.path, path, strict=False):
            if ours.node is not theirs.node:
                break
            common = min(ours.hi, theirs.hi)
            if ours.hi != theirs.hi:
                break
        common = min(common, num_blocks)
        return common if common == self.num_blocks else common // STRIDE * STRIDE


class Contents:
    """Interns prompts: equal prefixes give equal paths.

    Args:
        block_size: tokens per KV block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._root = Node()

    def path(self, segments: Iterable[tuple[str, int, int]]) -> tuple[Span, ...]:
        """The full blocks of a prompt; tokens after the last full block have no name.

        Args:
            segments: (content id, first position, tokens), in order.
        """
        size = self._block_size
        spans: list[Span] = []
        node, at = self._root, 0
        pieces: list[Piece] = []
        filled = 0
        for content_id, start, count in _joined(segments):
            taken = min(size - filled, count)
            pieces.append((content_id, start, taken))
            filled += taken
            if filled < size:
                continue
            num_blocks = 1 + (count - taken) // size
            node = self._child(node, at, tuple(pieces))
            spans.append(Span(node, at, at + num_blocks))
            at += num_blocks
            filled = (count - taken) % size
            pieces = [(content_id, start + count - filled, filled)] if filled else []
        return tuple(spans)

    def _child(self, node: Node, at: int, first_block: tuple[Piece, ...]) -> Node:
        key = (at, first_block)
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = Node()
        return child


def _joined(segments: Iterable[tuple[str, int, int]]) -> list[Piece]:
    """The same tokens in the fewest segments: equal content must give equal pieces."""
    merged: list[Piece] = []
    for content_id, start, count in segments:
        if count <= 0:
            continue
        if merged:
            last_id, last_start, last_count = merged[-1]
            if last_id == content_id and last_start + last_count == start:
                merged[-1] = (content_id, last_start, last_count + count)
                continue
        merged.append((content_id, start, count))
    return merged
