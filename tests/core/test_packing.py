# SPDX-License-Identifier: Apache-2.0
import math

from hypothesis import given
from hypothesis import strategies as st

from mars.core.model import ActiveSet, HeldSession, Load, Session
from mars.core.packing import (
    PackingMode,
    few_long,
    fitting,
    free_tokens,
    in_arrival_order,
    ordered,
    prompt_tokens,
)


def held(name, since, tokens):
    return HeldSession(Session(name, since), since, tokens)


def names(queue):
    return [h.session.session_id for h in queue]


backlogs = st.lists(st.tuples(st.floats(0.0, 1000.0), st.integers(0, 100_000)), max_size=12).map(
    lambda rows: [held(f"s{i}", since, tokens) for i, (since, tokens) in enumerate(rows)]
)


@given(backlogs, st.sampled_from(PackingMode))
def test_every_mode_keeps_everybody_and_puts_the_overdue_first(backlog, mode):
    queue = ordered(backlog, mode, prompt_tokens, now=1000.0, overdue_s=400.0)
    assert sorted(names(queue)) == sorted(names(backlog))
    late = [h for h in in_arrival_order(backlog) if 1000.0 - h.held_since > 400.0]
    assert queue[: len(late)] == late


def test_modes_order_by_size():
    backlog = [held("a", 0, 50), held("b", 1, 10), held("c", 2, 90)]

    def order(mode):
        return names(ordered(backlog, mode, prompt_tokens, now=2.0, overdue_s=100.0))

    assert order(PackingMode.FCFS) == ["a", "b", "c"]
    assert order(PackingMode.SHORT_FIRST) == ["b", "a", "c"]
    assert order(PackingMode.LONG_FIRST) == ["c", "a", "b"]


@given(backlogs, st.floats(0.0, 200_000.0), st.integers(0, 5))
def test_what_fits_never_exceeds_budget_or_slots(backlog, budget, slots):
    chosen = fitting(
        backlog, budget=budget, slots=slots, size=prompt_tokens, may_pass=lambda h: True
    )
    assert len(chosen) <= slots
    assert sum(map(prompt_tokens, chosen)) <= budget


def test_who_must_not_be_passed_stops_the_queue():
    backlog = [held("a", 0, 10), held("large", 1, 1000), held("b", 2, 10)]

    def choose(may_pass):
        return names(
            fitting(backlog, budget=100, slots=math.inf, size=prompt_tokens, may_pass=may_pass)
        )

    assert choose(lambda h: True) == ["a", "b"]
    assert choose(lambda h: False) == ["a"]


def test_few_long_counts_those_in_flight():
    active = ActiveSet({"x": Session("x", 0.0, context_tokens=60_000)})
    queue = [held("l1", 0, 60_000), held("s", 1, 100), held("l2", 2, 60_000)]
    assert names(few_long(queue, active, 50_000, 2, lambda h: False)) == ["l1", "s"]
    assert names(few_long(queue, active, 50_000, 2, lambda h: True)) == ["l1", "s", "l2"]


def test_free_tokens_beyond_the_reserve():
    load = Load(0.0, kv_blocks_total=100, kv_blocks_free=30, block_size=16)
    assert free_tokens(load, 0.1) == 20 * 16
    assert free_tokens(load, 0.5) == 0
    assert free_tokens(Load(0.0, kv_blocks_total=100), 0.1) is None
