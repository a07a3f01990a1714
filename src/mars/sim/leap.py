# SPDX-License-Identifier: Apache-2.0
"""Stretches of pure decode in one go, equal to the same steps one by one.

While every running turn decodes, none ends, none can start and memory suffices, a step
changes nothing but counters and time. What is left per step is one multiply-add, and under
a policy what it is told of service. Time is summed in the order of single steps, so that
the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mars.core.model import Turn
from mars.sim.content import Node, Span
from mars.sim.request import Request

if TYPE_CHECKING:
    from mars.sim.engine import Engine
    from mars.sim.policy_engine import PolicyEngine


def stock_stretch(engine: Engine, now: float, end: float, until: float) -> tuple[float, float]:
    """Run decode steps as long as nothing else happens.

    Args:
        engine: the engine, first come first served.
        now: time of the next plan.
        end: when the step in flight ends; ``now`` if there is none.
        until: time of the next event; steps planned before it are run.

    Returns:
        The new ``now`` and ``end``.
    """
    num_steps = _affordable_steps(engine)
    if num_steps <= 1 or not _is_closed(engine):
        return now, end
    is_async, batch = engine.shape.is_async, len(engine.running)
    fixed_s, slope_s = engine.cost.decode_line(batch)
    kv_tokens = _num_kv_tokens(engine)
    left = num_steps
    while left and now < until:
        step_s = fixed_s + kv_tokens * slope_s
        now, end = (end, end + step_s) if is_async else (now + step_s, now + step_s)
        kv_tokens += batch
        left -= 1
    _advance(engine, num_steps - left)
    for request in engine.running:
        request.turn.session.num_computed_tokens += num_steps - left
    engine.co.computed_tokens += (num_steps - left) * batch
    return now, end


def policy_stretch(
    engine: PolicyEngine, now: float, end: float, until: float
) -> tuple[float, float]:
    """As :func:`stock_stretch`; the policy hears of every step, and blocks are taken when due.

    The turns are not put in order again: none ends, so that nothing depends on it.
    """
    num_steps = num_decodes(engine.running, len(engine.in_flight)) - len(engine.in_flight)
    if num_steps <= 1 or engine.has_news or not _is_whole_batch(engine):
        return now, end
    gated = _gated(engine)
    is_async, batch, size = engine.shape.is_async, len(engine.running), engine.shape.block_size
    fixed_s, slope_s = engine.cost.decode_line(batch)
    kv_tokens = _num_kv_tokens(engine)
    served = [(request.turn, 1) for request in engine.running]
    due: list[list[Request]] = [[] for _ in range(size)]
    for request in engine.running:
        due[-request.num_computed % size].append(request)
    step = 0
    while step < num_steps and now < until:
        if not engine.may_decode(due[step % size], gated, now):
            break
        if step == 0:
            engine.tell_progress()
        else:
            for turn, _ in served:
                turn.num_output_tokens += 1
        engine.co.served(served, now)
        engine.tell_evictions(now)
        step_s = fixed_s + kv_tokens * slope_s
        now, end = (end, end + step_s) if is_async else (now + step_s, now + step_s)
        kv_tokens += batch
        step += 1
    if step:
        _advance(engine, step)
    return now, end


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
        steps = min(steps, request.max_tokens - num_output - 1)
        if steps <= 0:
            return 0
    return steps if running else 0


def cannot_gain(path: Sequence[Span], running: Sequence[Request]) -> bool:
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


def _overlap(node: Node) -> bool:
    if len(node.extents) == 2:
        one, two = node.extents
        return one.lo < two.hi and two.lo < one.hi
    extents = sorted((extent.lo, extent.hi) for extent in node.extents)
    return any(a[1] > b[0] for a, b in pairwise(extents))


def _affordable_steps(engine: Engine) -> int:
    """Steps that all running turns can decode with the blocks that are free."""
    running, size = engine.running, engine.shape.block_size
    num_steps = num_decodes(running, len(engine.in_flight))
    if num_steps <= 1 or not _is_whole_batch(engine):
        return 0
    while num_steps:
        blocks = (-(-(r.num_computed + num_steps) // size) - r.table.num_blocks for r in running)
        if sum(blocks) <= engine.pool.num_free:
            break
        num_steps //= 2
    return num_steps


def _is_whole_batch(engine: Engine) -> bool:
    """Whether all running turns fit one step, and are in the one in flight."""
    num_running = len(engine.running)
    if num_running > engine.shape.max_num_batched_tokens:
        return False
    return not engine.in_flight or len(engine.in_flight[0]) == num_running


def _is_closed(engine: Engine) -> bool:
    """Whether no waiting turn can start while the running ones decode on."""
    if not engine.waiting or len(engine.running) >= engine.shape.max_num_seqs:
        return True
    if engine.tier is not None and engine.tier.is_copying:
        # Who waits for a copy is passed over, and the next one's turn comes.
        return all(_is_too_long(engine, request) for request in engine.waiting)
    return _is_too_long(engine, engine.waiting[0])


def _is_too_long(engine: Engine, request: Request) -> bool:
    """Whether a waiting turn's prompt does not fit, and will not while others decode."""
    if request.num_stale or not cannot_gain(request.path, engine.running):
        return False
    num_hashed = (request.num_tokens - 1) // engine.shape.block_size
    hits, num_hit = engine.pool.lookup(request.path, num_hashed)
    return engine.num_needed(request, hits, num_hit) > engine.pool.num_free


def _gated(engine: PolicyEngine) -> list[Turn] | None:
    """Waiting turns that only the policy's gate keeps out, to be asked at every step.

    None when some waiting turn could start: then every step needs the first of their order.
    """
    if not engine.waiting or len(engine.running) >= engine.shape.max_num_seqs:
        return []
    if engine.may_hold:
        return None  # held KV may be reclaimed for a waiting turn that does not fit
    turns, free = [request.turn for request in engine.running], engine.pool.num_free
    gate, gated = engine.policy_gate, list[Turn]()
    for request in engine.waiting:
        if gate is not None and not gate(request.turn):
            gated.append(request.turn)
        elif engine.co.may_start(request.turn, turns, free) and not _is_too_long(engine, request):
            return None
    return gated


def _num_kv_tokens(engine: Engine) -> int:
    """KV that the next decode step of all running turns reads, in tokens."""
    return sum(request.num_computed for request in engine.running) + len(engine.running)


def _advance(engine: Engine, num_steps: int) -> None:
    """Counters and blocks of the running turns after so many decode steps."""
    pool, size, num_in_flight = engine.pool, engine.shape.block_size, len(engine.in_flight)
    for request in engine.running:
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
    if num_in_flight:
        engine.in_flight[0] = [(request, 1, True) for request in engine.running]
    engine.count_steps(num_steps)
