# SPDX-License-Identifier: Apache-2.0
"""Tool-queue policies: what they prefer, that nobody starves, and that they stay small."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars.core.model import Load, Session, ToolCall
from mars.core.policy import BaseToolPolicy, tool_policies
from mars.core.toolqueue.shortest import Shortest

LOAD = Load(sampled_at=0.0)


def call(number: int, session: Session, tool: str = "bash", queued_at: float = 0.0) -> ToolCall:
    return ToolCall(str(number), session.session_id, tool, queued_at)


def taught(**options: float) -> Shortest:
    """A policy that knows: ``ls`` takes 0.1 s, ``build`` 60 s."""
    policy = Shortest(**options)
    for _ in range(50):
        policy.estimator.observe("bash:ls", 0.1)
        policy.estimator.observe("bash:build", 60.0)
    return policy


def order(policy: BaseToolPolicy, calls: list[tuple[ToolCall, Session]], now: float) -> list[str]:
    for one, session in calls:
        policy.on_queue(one, session, one.queued_at)
    return [c.tool_call_id for c, s in sorted(calls, key=lambda pair: policy.rank(*pair, now))]


def test_fifo_is_the_order_of_asking() -> None:
    session = Session("s", 0.0)
    policy = tool_policies.create("fifo")
    calls = [(call(i, session, queued_at=t), session) for i, t in enumerate((3.0, 1.0, 2.0))]
    assert order(policy, calls, 9.0) == ["1", "2", "0"]
    assert policy.slots(LOAD, 0.0) is None


def test_a_short_call_goes_before_a_long_one_asked_for_earlier() -> None:
    a, b = Session("a", 100.0), Session("b", 100.0)
    calls = [(call(0, a, "bash:build", 100.0), a), (call(1, b, "bash:ls", 101.0), b)]
    assert order(taught(), calls, 101.0) == ["1", "0"]


def test_among_like_calls_the_older_session_goes_first() -> None:
    old, new = Session("old", 0.0), Session("new", 90.0)
    calls = [(call(0, new, "bash:ls", 100.0), new), (call(1, old, "bash:ls", 101.0), old)]
    assert order(taught(), calls, 101.0) == ["1", "0"]


def test_a_session_with_many_calls_at_once_does_not_crowd_out_another() -> None:
    greedy, modest = Session("greedy", 0.0), Session("modest", 0.0)
    calls = [(call(i, greedy, "bash:ls", 10.0), greedy) for i in range(10)]
    calls.append((call(99, modest, "bash:ls", 10.1), modest))
    assert order(taught(), calls, 10.1).index("99") <= 1


def test_a_session_that_had_much_tool_time_steps_back() -> None:
    policy = taught()
    heavy, light = Session("heavy", 0.0), Session("light", 10.0)
    for i in range(10):
        done = ToolCall(f"h{i}", "heavy", "bash:build", 0.0, 0.0, 60.0)
        policy.on_queue(done, heavy, 0.0)
        policy.on_finish(done, 60.0)
    calls = [(call(0, heavy, "bash:ls", 700.0), heavy), (call(1, light, "bash:ls", 700.0), light)]
    assert order(policy, calls, 700.0) == ["1", "0"]


def test_weight_buys_an_earlier_turn() -> None:
    plain, paid = Session("plain", 0.0), Session("paid", 0.0, weight=10.0)
    calls = [
        (call(0, plain, "bash:build", 10.0), plain),
        (call(1, paid, "bash:build", 10.1), paid),
    ]
    assert order(taught(max_wait_s=1e6), calls, 11.0) == ["1", "0"]


def test_durations_are_learned_from_what_ends_and_not_from_what_is_given_up() -> None:
    policy = Shortest()
    before_s = policy.estimator.expected("bash:make")
    session = Session("s", 0.0)
    given_up = ToolCall("g", "s", "bash:make", 0.0, started_at=0.0)
    policy.on_queue(given_up, session, 0.0)
    policy.on_finish(given_up, 500.0)
    assert policy.estimator.expected("bash:make") == before_s
    ended = ToolCall("e", "s", "bash:make", 0.0, 0.0, 500.0)
    policy.on_queue(ended, session, 0.0)
    policy.on_finish(ended, 500.0)
    assert policy.estimator.expected("bash:make") > 5 * before_s


def test_only_a_call_of_a_class_known_to_be_short_passes_full_slots() -> None:
    policy, session = taught(), Session("s", 0.0)
    assert policy.is_express(call(1, session, "bash:ls"), 0.0)
    assert not policy.is_express(call(2, session, "bash:build"), 0.0)
    assert not policy.is_express(call(3, session, "bash:never-seen"), 0.0)
    assert not tool_policies.create("fifo").is_express(call(4, session, "bash:ls"), 0.0)


def test_rank_is_pure_and_does_not_move_while_a_call_waits() -> None:
    policy, session = taught(), Session("s", 0.0)
    one = call(1, session, "bash:ls", 5.0)
    fresh = policy.rank(one, session, 5.0)
    policy.on_queue(one, session, 5.0)
    assert policy.rank(one, session, 5.0) == fresh
    assert policy.rank(one, session, 500.0) == fresh


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 5000.0), st.sampled_from(["bash:ls", "bash:build", "x"]), st.booleans()
        ),
        min_size=2,
        max_size=40,
    )
)
def test_a_call_is_overtaken_only_by_calls_asked_for_soon_after_it(
    arrivals: list[tuple[float, str, bool]],
) -> None:
    policy = taught()
    bound_s = policy.max_lead_s + policy.max_wait_s
    sessions = {True: Session("old", 0.0), False: Session("new", 4000.0)}
    queued = []
    for i, (time, tool, is_old) in enumerate(sorted(arrivals)):
        session = sessions[is_old]
        one = call(i, session, tool, time)
        policy.on_queue(one, session, time)
        queued.append((policy.rank(one, session, time), time))
    for rank, time in queued:
        for other_rank, other_time in queued:
            if other_time > time + bound_s:
                assert other_rank > rank


def served(policy: BaseToolPolicy, num_short_per_s: float, end_s: float) -> float:
    """One slot under an endless stream of short calls of old sessions that keeps it 80%
    busy; how long a build of a new session, asked for at 1 s, waits."""
    new, now, number = Session("new", 1.0), 1.0, 0
    build = ToolCall("build", "new", "bash:build", 1.0)
    policy.on_queue(build, new, 1.0)
    waiting: list[tuple[tuple[float, ...], int, ToolCall]] = [
        (policy.rank(build, new, 1.0), number, build)
    ]
    next_arrival = 0.0
    while now < end_s:
        while next_arrival <= now:
            number += 1
            old = Session(f"old{number % 20}", 0.0)
            short = ToolCall(str(number), old.session_id, "bash:ls", next_arrival)
            policy.on_queue(short, old, next_arrival)
            heapq.heappush(waiting, (policy.rank(short, old, now), number, short))
            next_arrival += 1.0 / num_short_per_s
        if not waiting:
            now = next_arrival
            continue
        _, _, chosen = heapq.heappop(waiting)
        if chosen is build:
            return now - 1.0
        chosen.started_at, chosen.finished_at = now, now + 0.1
        now += 0.1
        policy.on_finish(chosen, now)
    return end_s


def test_a_long_call_under_an_endless_stream_of_short_ones_gets_its_turn() -> None:
    policy = taught(max_lead_s=100.0, max_wait_s=50.0)
    wait_s = served(policy, num_short_per_s=12.0, end_s=5000.0)
    bound_s = (policy.max_lead_s + policy.max_wait_s) * 1.2 + 1.0
    assert wait_s <= bound_s


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=300))
def test_what_is_remembered_ends_with_the_calls_and_sessions(
    steps: list[tuple[int, bool]],
) -> None:
    policy = Shortest()
    queued: dict[int, ToolCall] = {}
    for number, is_arrival in steps:
        session = Session(f"s{number % 7}", 0.0)
        if is_arrival:
            queued[number] = call(number, session)
            policy.on_queue(queued[number], session, 0.0)
        elif number in queued:
            policy.on_finish(queued.pop(number), 1.0)
    for one in queued.values():
        policy.on_finish(one, 1.0)
    for number in range(7):
        policy.on_session_end(f"s{number}", 2.0)
    assert not policy._calls
    assert not policy._outstanding
    assert not policy._attained_s


def test_memory_is_bounded_even_if_nothing_is_ever_said_to_end() -> None:
    policy = Shortest()
    for i in range(10_000):
        session = Session(f"s{i}", 0.0)
        one = ToolCall(str(i), session.session_id, f"tool{i}", 0.0, 0.0, 1.0)
        policy.on_queue(one, session, 0.0)
        done = ToolCall(f"d{i}", session.session_id, f"tool{i}", 0.0, 0.0, 1.0)
        policy.on_finish(done, 1.0)
    bound = 8192
    assert len(policy._calls) <= bound
    assert len(policy._outstanding) <= bound
    assert len(policy._attained_s) <= bound


@pytest.mark.parametrize("option", ["stretch", "max_lead_s", "max_wait_s"])
def test_impossible_options_are_named(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        tool_policies.create("shortest", **{option: -1.0})
