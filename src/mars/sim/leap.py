# SPDX-License-Identifier: Apache-2.0
"""Stretches of pure decode in one go, equal to the same steps one by one.

While every running turn decodes, none ends, none can start and memory suffices, a step
changes nothing but counters and time. What is left per step is one multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mars.sim.blocks import BlockPool
from mars.sim.content import Node, Span
from mars.sim.request import Request


def num_decodes(running: Sequence[Request], num_in_flight: int) -> int:
    """How many steps all running turns decode together without one of them ending.

    Args:
        running: the turns; 0 if one of them still prefills.
        num_in_flight: steps planned whose tokens are not there yet (0 or 1).
    """
    steps = 1 << 60
    for request in running:
        num_output = request.num_tokens - request.num_prompt
        ahead = request.num_tokens + num_in_flight - request.num_computed
        if ahead != 1 or num_output == 0 or request.num_placeholders != num_in_flight:
            return 0
        left = request.max_tokens - num_output - 1
        if left < steps:
            if left <= 0:
                return 0
            steps = left
    return steps if running else 0


def num_missing_blocks(running: Sequence[Request], num_steps: int, block_size: int) -> int:
    """Blocks that ``num_steps`` decode steps of all running turns will take."""
    missing = 0
    for request in running:
        missing += -(-(request.num_computed + num_steps) // block_size) - request.table.num_blocks
    return missing


def is_safe(path: Sequence[Span], running: Sequence[Request]) -> bool:
    """Whether decoding cannot lengthen this prompt's prefix hit.

    It could where a running turn writes content of the same node, or where an evicted
    copy of a block has a duplicate that is in use.
    """
    nodes: set[Node] = set()
    for span in path:
        if len(span.node.extents) > 1 and _overlap(span.node):
            return False
        nodes.add(span.node)
    return not any(
        span.node in nodes
        for request in running
        for span in request.path[request.table.span_index :]
    )


def advance(
    request: Request, num_steps: int, num_in_flight: int, pool: BlockPool, size: int
) -> None:
    """Counters and blocks of a running turn after ``num_steps`` decode steps."""
    request.num_tokens += num_steps
    request.num_computed += num_steps
    request.num_in_flight = num_in_flight
    table = request.table
    missing = -(-request.num_computed // size) - table.num_blocks
    if missing > 0:
        pool.take(table, missing)
    full = (request.num_computed - num_in_flight) // size
    if full > table.num_cached:
        pool.cache(table, request.path, full)


def _overlap(node: Node) -> bool:
    extents = sorted((extent.lo, extent.hi) for extent in node.extents)
    return any(a[1] > b[0] for a, b in pairwise(extents))
