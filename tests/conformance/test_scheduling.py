# SPDX-License-Identifier: Apache-2.0
"""What every registered scheduling policy must keep, whoever wrote it."""

from __future__ import annotations

import math
import pickle
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.abstract_server import STEP_BASE_S, STEP_TOKEN_S, AbstractServer, Agent
from conformance.strategies import loads, sessions, turns
from mars.core.coscheduler import CoScheduler
from mars.core.model import Load, Session, ToolCall, Turn
from mars.core.policy import SchedulingPolicy, scheduling_policies

NAMES = scheduling_policies.names()
NOW = 1000.0
LOAD = Load(NOW, kv_blocks_total=10_000, kv_blocks_free=2_000, num_waiting=3)
times = st.floats(min_value=-1.0e6, max_value=1.0e7)

pytestmark = pytest.mark.parametrize("name", NAMES)


def scheduler(policy: SchedulingPolicy) -> CoScheduler:
    return CoScheduler(policy, num_blocks=10_000, block_size=16, emit=lambda event: None)


def snapshot(*what: object) -> bytes:
    return pickle.dumps(what)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), now=times)
def test_order_is_total_and_does_not_depend_on_the_input_order(name, data, now):
    policy = scheduling_policies.create(name)
    co = scheduler(policy)
    view = data.draw(st.lists(turns(), min_size=2, max_size=8))
    view = [replace(t, request_id=f"r{i}") for i, t in enumerate(view)]
    ranks = [policy.rank(t, now) for t in view]
    assert all(isinstance(r, tuple) and not any(math.isnan(x) for x in r) for r in ranks)
    ids = [t.request_id for t in co.order(view, now)]
    assert ids == [t.request_id for t in co.order(reversed(view), now)]
    keys = [co.rank_key(t, now) for t in co.order(view, now)]
    assert all(a < b for a, b in pairwise(keys))


@settings(max_examples=40, deadline=None)
@given(turn=turns(), now=times)
def test_rank_is_pure(name, turn, now):
    policy = scheduling_policies.create(name)
    first = policy.rank(turn, now)
    quantum = policy.prefill_quantum(turn, now)
    before = snapshot(policy, turn)  # after one call: tables may be filled by asking
    assert policy.rank(turn, now) == first
    assert policy.prefill_quantum(turn, now) == quantum
    assert snapshot(policy, turn) == before


@settings(max_examples=60, deadline=None)
@given(turn=turns(), other=sessions(), load=loads(), now=times)
def test_nothing_raises_on_odd_inputs(name, turn, other, load, now):
    policy = scheduling_policies.create(name)
    policy.on_submit(turn, now)
    policy.on_step([turn], load, now)
    assert isinstance(policy.may_start(turn), bool)
    policy.on_service(turn, max(1, turn.num_prompt_tokens // 2), now)
    quantum = policy.prefill_quantum(turn, now)
    assert quantum is None or quantum > 0
    policy.on_preempt(turn, now)
    policy.on_finish(turn, now)
    for session in (turn.session, other):
        assert not math.isnan(policy.retention_value(session, load, now))
        assert isinstance(policy.holds_kv(session, load, now), bool)
        assert isinstance(policy.yields_to(session, turn, load, now), bool)
        policy.on_end(session)


def live(co: CoScheduler, first: int, last: int) -> None:
    """Sessions ``first`` to ``last``, two turns each, every one with a tool of its own."""
    for i in range(first, last):
        now, sid = float(i), f"s{i}"
        for k in range(2):
            turn = co.submit(f"{sid}/{k}", sid, 2000 + i % 700 + 500 * k, now + k)
            co.started(turn, 0, 0, now + k)
            co.served([(turn, turn.num_prompt_tokens)], now + k)
            turn.num_output_tokens = 10
            if co.finished(turn, LOAD, now + k, reason="stop", num_cached_blocks=100):
                co.held.released(sid, "expired", now + k)
            co.tool_started(ToolCall(f"t{i}/{k}", sid, f"tool{i}", now + k))
        co.end_session(sid)
        assert sid not in co.sessions


def test_state_is_bounded_over_10000_sessions(name):
    policy = scheduling_policies.create(name)
    co = scheduler(policy)
    live(co, 0, 5000)
    size = len(snapshot(policy.__dict__))
    live(co, 5000, 10_000)
    assert not co.sessions
    assert not co.turns
    assert len(snapshot(policy.__dict__)) <= 1.1 * size + 1024
    assert size < 2_000_000


def crowd(load: float, until_s: float) -> list[Agent]:
    """Short warm sessions without end; together ``load`` times what the server can do."""
    turns = [(1500, 5)] + [(600, 5)] * 9
    # Four turns share the steps, so a decode step costs each a quarter of it.
    seconds = sum(STEP_TOKEN_S * p + STEP_BASE_S * o / 4 for p, o in turns)
    gap_s = seconds / load
    return [Agent(f"c{i:05}", i * gap_s, list(turns)) for i in range(int(until_s / gap_s))]


@pytest.mark.parametrize("load", [0.9, 1.4])
def test_nobody_starves(name, load):
    """One large session among endless small ones gets every turn within a bound.

    The bound is that of the least attained service policies: a session with twenty times
    the service of the others waits until their decay has made up for it.
    """
    server = AbstractServer(scheduling_policies.create(name))
    victim = Agent("victim", 60.0, [(60_000, 5), (12_000, 5), (9_000, 5)])
    server.run([*crowd(load, 1500.0), victim], until_s=1500.0, until_done="victim")
    assert "victim" in server.finished, f"waited {server.waits.get('victim')}"
    assert max(server.waits["victim"]) <= 450.0


def test_everybody_ends(name):
    server = AbstractServer(scheduling_policies.create(name))
    agents = crowd(1.2, 60.0)
    server.run(agents, until_s=10_000.0)
    assert server.finished == {a.session_id for a in agents}


def test_a_recomputed_turn_is_not_forgotten(name):
    """A preempted turn is ranked, served and finished like any other."""
    policy = scheduling_policies.create(name)
    co = scheduler(policy)
    turn = co.submit("r", "s", 5000, 0.0)
    co.started(turn, 0, 0, 0.0)
    co.served([(turn, 2000)], 0.0)
    co.preempted(turn, 1.0)
    assert turn.num_computed_tokens == 0
    assert not any(math.isnan(x) for x in policy.rank(turn, 2.0))
    co.started(turn, 0, 2000, 2.0)
    co.served([(turn, 5000)], 2.0)
    assert turn.num_recomputed_tokens == 2000
    co.finished(turn, LOAD, 3.0, reason="stop", num_cached_blocks=0)
    assert not co.turns


def test_speed_is_printed(name, capsys):
    """Not asserted: time to order 512 turns and to price 500 sessions."""
    policy = scheduling_policies.create(name)
    co = scheduler(policy)
    view: list[Turn] = []
    for i in range(512):
        session = Session(f"s{i}", arrival_time=i, last_turn_finished_at=900.0 + i / 10)
        session.cached_tokens = session.context_tokens = 16 * (i * 37 % 4000)
        turn = Turn(f"r{i}", session, 3, 900.0 + i / 5, 16 * (i * 37 % 4000) + 500)
        policy.on_submit(turn, turn.arrival_time)
        view.append(turn)
    start = time.perf_counter()
    order = co.order(view, NOW)
    order_ms = 1.0e3 * (time.perf_counter() - start)
    start = time.perf_counter()
    values = [policy.retention_value(t.session, LOAD, NOW) for t in view[:500]]
    value_ms = 1.0e3 * (time.perf_counter() - start)
    with capsys.disabled():
        sys.stdout.write(
            f"\n  {name:18} order 512 turns {order_ms:6.2f} ms, price 500 {value_ms:6.2f} ms\n"
        )
    assert len(order) == 512
    assert len(values) == 500
