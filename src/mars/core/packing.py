# SPDX-License-Identifier: Apache-2.0
"""Which held sessions to admit, given the pressures, and how long one may be overtaken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from itertools import pairwise

from mars.core.model import ActiveSet, HeldSession, Load

Size = Callable[[HeldSession], float]
"""What admitting a session takes of the budget (tokens)."""


class PackingMode(StrEnum):
    """Order of the backlog; the names of the first three are those of the MARS preview."""

    FCFS = "low_pressure_fcfs"
    SHORT_FIRST = "short_first"
    LONG_FIRST = "cpu_overloaded_long_first"


def in_arrival_order(held: Iterable[HeldSession]) -> list[HeldSession]:
    """First held first; ties by session id, so that the order never depends on the caller."""
    queue = list(held)
    if all(a.held_since < b.held_since for a, b in pairwise(queue)):
        return queue  # as a queue is kept; a sort would make ten thousand keys for nothing
    return sorted(queue, key=lambda h: (h.held_since, h.session.session_id))


def ordered(
    held: Iterable[HeldSession], mode: PackingMode, size: Size, now: float, overdue_s: float
) -> list[HeldSession]:
    """The backlog in the order of ``mode``; whoever waits longer than ``overdue_s`` goes first.

    The overdue ones are in arrival order before all others: that bounds overtaking.
    """
    queue = in_arrival_order(held)
    late = [h for h in queue if now - h.held_since > overdue_s]
    rest = [h for h in queue if now - h.held_since <= overdue_s]
    if mode is PackingMode.SHORT_FIRST:
        rest.sort(key=size)
    elif mode is PackingMode.LONG_FIRST:
        rest.sort(key=size, reverse=True)
    return late + rest


def fitting(
    queue: Sequence[HeldSession],
    *,
    budget: float,
    slots: float,
    size: Size,
    may_pass: Callable[[HeldSession], bool],
    fits: Callable[[HeldSession, float], bool] | None = None,
) -> list[HeldSession]:
    """The sessions of ``queue``, in order, that fit the budget and the slots.

    ``fits`` is asked besides, with what has been given away by then, the session's own
    included (tokens). A session that does not fit is passed over only if ``may_pass``
    allows it; otherwise everybody behind it waits too, so that what is freed is kept for it.
    """
    chosen: list[HeldSession] = []
    given = 0.0
    for session in queue:
        if len(chosen) >= slots or budget < 0.0:
            break
        need = size(session)
        if need <= budget and (fits is None or fits(session, given + need)):
            chosen.append(session)
            budget -= need
            given += need
        elif not may_pass(session):
            break
    return chosen


def overdue_first(
    queue: Sequence[HeldSession], chosen: Sequence[HeldSession], now: float, force_s: float
) -> list[HeldSession]:
    """Those of ``queue`` held for longer than ``force_s``, then the rest of ``chosen``."""
    late = [h for h in queue if now - h.held_since > force_s]
    names = {h.session.session_id for h in late}
    return [*late, *(h for h in chosen if h.session.session_id not in names)]


def few_long(
    queue: Sequence[HeldSession],
    active: ActiveSet,
    long_tokens: int,
    num_long: int,
    is_late: Callable[[HeldSession], bool],
) -> list[HeldSession]:
    """``queue`` without long first prompts beyond ``num_long`` in flight, unless late."""
    room = num_long - sum(s.context_tokens > long_tokens for s in active.sessions.values())
    out: list[HeldSession] = []
    for held in queue:
        is_long = held.num_prompt_tokens > long_tokens
        if not is_long or room > 0 or is_late(held):
            out.append(held)
            room -= is_long
    return out


def prompt_tokens(held: HeldSession) -> float:
    """Size of a session by its first prompt alone."""
    return float(held.num_prompt_tokens)


def free_tokens(load: Load, reserve: float) -> float | None:
    """KV tokens free beyond a reserved share (0..1) of the pool; None when not known."""
    if not load.kv_blocks_total or load.kv_blocks_free is None:
        return None
    reserved = math.ceil(reserve * load.kv_blocks_total)
    return float(max(0, load.kv_blocks_free - reserved) * load.block_size)
