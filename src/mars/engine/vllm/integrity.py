# SPDX-License-Identifier: Apache-2.0
"""Does the accounting of blocks, turns and sessions agree with itself?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.scheduler import Scheduler

from mars.core.coscheduler import CoScheduler
from mars.engine.vllm.blocks import ValueOrderedBlocks
from mars.engine.vllm.retained import RetainedBlocks


class IntegrityError(RuntimeError):
    """Two records that must agree do not; the message lists which."""


def check_integrity(
    scheduler: Scheduler,
    *,
    co: CoScheduler | None = None,
    retained: RetainedBlocks | None = None,
    values: ValueOrderedBlocks | None = None,
) -> None:
    """Check every block, request, turn and session; changes nothing.

    Each block is free, or referenced exactly as often as requests, retained sessions and
    late frees use it; with a KV connector at least as often, as that takes references of
    its own. Each request is in one queue. Turns and requests, held and retained sessions
    are the same sets. Works on vLLM's own scheduler too, which has no sessions.

    Raises:
        IntegrityError: lists what does not agree.
    """
    found = _block_problems(scheduler, retained) + _queue_problems(scheduler)
    if values is not None:
        found += values.problems()
    if co is not None:
        found += _turn_problems(scheduler, co)
        if retained is not None:
            found += _retention_problems(co, retained)
    if found:
        raise IntegrityError("; ".join(found[:10]))


def _block_problems(scheduler: Scheduler, retained: RetainedBlocks | None) -> list[str]:
    pool = scheduler.kv_cache_manager.block_pool
    used: Counter[int] = Counter()
    for blocks in _uses(scheduler, retained):
        used.update([b.block_id for b in blocks if not b.is_null])
    listed = pool.free_block_queue.get_all_free_blocks()
    free = {block.block_id for block in listed}
    found: list[str] = []
    if len(free) != len(listed):
        found.append(f"{len(listed) - len(free)} blocks are free twice")
    if len(listed) != pool.get_num_free_blocks():
        found.append(f"{pool.get_num_free_blocks()} free blocks counted, {len(listed)} listed")
    # Copies between blocks of a hybrid cache take references of their own.
    is_hybrid = len(scheduler.kv_cache_config.kv_cache_groups) > 1
    is_exact = scheduler.connector is None and not is_hybrid
    for block in pool.blocks:
        if block.is_null:
            continue
        num_used = used[block.block_id]
        if block.ref_cnt < num_used or (is_exact and block.ref_cnt != num_used):
            found.append(f"block {block.block_id}: {block.ref_cnt} references, {num_used} uses")
        if (block.block_id in free) != (block.ref_cnt == 0):
            state = "is" if block.block_id in free else "is not"
            found.append(f"block {block.block_id}: {block.ref_cnt} references, {state} free")
    return found


def _uses(
    scheduler: Scheduler, retained: RetainedBlocks | None
) -> Iterable[Iterable[KVCacheBlock]]:
    for request_id in scheduler.requests:
        yield from scheduler.kv_cache_manager.get_blocks(request_id).blocks
    for _, blocks in scheduler.deferred_frees:
        yield blocks
    if retained is not None:
        yield from (blocks for _, blocks in retained.items())


def _queue_problems(scheduler: Scheduler) -> list[str]:
    places: Counter[str] = Counter(r.request_id for r in scheduler.running)
    for queue in _waiting_queues(scheduler):
        places.update([r.request_id for r in queue])
    found = [f"request {name} is in {n} queues" for name, n in places.items() if n > 1]
    for name, request in scheduler.requests.items():
        if not request.is_finished() and name not in places:
            found.append(f"request {name} is in no queue")
    found += [
        f"request {name} is queued but unknown" for name in places.keys() - scheduler.requests
    ]
    return found


def _waiting_queues(scheduler: Any) -> list[Any]:
    # 0.30 keeps apart what it skipped, later ones what holds blocks while it waits.
    names = ("waiting", "kv_holding_waiting", "skipped_waiting")
    return [getattr(scheduler, name) for name in names if hasattr(scheduler, name)]


def _turn_problems(scheduler: Scheduler, co: CoScheduler) -> list[str]:
    found = [f"turn {name} has no request" for name in co.turns.keys() - scheduler.requests.keys()]
    # A finished request stays known while a KV connector needs its blocks.
    open_ones = {name for name, r in scheduler.requests.items() if not r.is_finished()}
    found += [f"request {name} has no turn" for name in open_ones - co.turns.keys()]
    num_open: Counter[str] = Counter(t.session.session_id for t in co.turns.values())
    for name, session in co.sessions.items():
        if session.num_open_turns != num_open[name]:
            found.append(
                f"session {name} counts {session.num_open_turns} open turns, has {num_open[name]}"
            )
    for name in num_open.keys() - co.sessions.keys():
        found.append(f"session {name} was forgotten, but has turns")
    for request in scheduler.running:
        turn = co.turns.get(request.request_id)
        if turn is not None and not turn.is_running:
            found.append(f"turn {request.request_id} runs but counts as waiting")
    return found


def _retention_problems(co: CoScheduler, retained: RetainedBlocks) -> list[str]:
    found: list[str] = []
    kept = {name: len(blocks) for name, blocks in retained.items()}
    held = {name: one.num_blocks for name, one in co.held.items()}
    if kept != held:
        found.append(f"retained blocks by session are {kept}, the books say {held}")
    if sum(kept.values()) != retained.num_blocks:
        found.append(f"{retained.num_blocks} retained blocks counted, {sum(kept.values())} present")
    return found
