# SPDX-License-Identifier: Apache-2.0
"""What every registered admission policy must keep, whoever wrote it."""

from __future__ import annotations

import json
import math
import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.abstract_gate import TICK_S, AbstractGate, Visit
from conformance.strategies import loads, sessions
from mars.core.model import ActiveSet, HeldSession, Load
from mars.core.policy import admission_policies

NAMES = admission_policies.names()
HEAD_COUNT = {"cap", "aimd-paper", "concur"}
"""Policies whose window is a number of sessions that admission never exceeds."""

pytestmark = pytest.mark.parametrize("name", NAMES)


def visits(rate: float, count: int, seed: int = 1) -> list[Visit]:
    rng = random.Random(seed)
    now, out = 0.0, []
    for i in range(count):
        now += rng.expovariate(rate)
        first = rng.choice([2_000, 8_000, 20_000, 70_000])
        out.append(Visit(f"s{i:04}", now, rng.uniform(20, 200), first, rng.randrange(40_000)))
    return out


def unknown(load: Load) -> Load:
    return Load(load.sampled_at)


def test_everybody_is_admitted_under_overload(name):
    gate = AbstractGate(admission_policies.create(name))
    gate.run(visits(rate=0.3, count=200), until_s=20_000.0)
    assert not gate.held
    assert not gate.active.sessions
    if name in HEAD_COUNT:
        assert gate.excess <= 0


def test_waiting_is_bounded_while_small_ones_keep_coming(name):
    """One session as large as half the pool, among small ones that never stop coming."""
    small = [Visit(f"c{i:05}", 2.0 * i, 60.0, 3_000, 9_000) for i in range(2500)]
    gate = AbstractGate(admission_policies.create(name))
    gate.run([*small, Visit("large", 100.5, 100.0, 100_000, 10_000)], until_s=5_000.0)
    ahead = gate.order.index("large")
    # Nobody who came more than 2,400 s (1,200 arrivals) after it goes first.
    assert ahead <= 50 + 1200


def claim_s(name: str) -> float:
    """The bound on overtaking that a policy claims, or the one that all must keep."""
    return min(2400.0, admission_policies.create(name).overtaking_s)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**20), rate=st.sampled_from([0.05, 0.3, 2.0]), large=st.booleans())
def test_nobody_is_overtaken_by_who_came_later_than_claimed(name, seed, rate, large):
    crowd = visits(rate, count=80, seed=seed)
    if large:
        middle = crowd[20].arrival_s
        crowd.append(Visit("large", middle, 100.0, 150_000, 10_000))
    gate = AbstractGate(admission_policies.create(name))
    gate.run(sorted(crowd, key=lambda v: v.arrival_s), until_s=3_000.0)
    arrived = {v.session_id: v.arrival_s for v in crowd}
    bound_s = claim_s(name)
    # Backwards: the earliest arrival among all that were admitted after one.
    earliest_s = math.inf
    for session_id in reversed([*gate.order, *(h.session.session_id for h in gate.held)]):
        arrival_s = arrived[session_id]
        assert arrival_s - earliest_s <= bound_s + TICK_S, session_id
        earliest_s = min(earliest_s, arrival_s)


def test_low_load_costs_nothing(name):
    calm = [Visit(f"s{i}", 30.0 * i, 25.0, 6_000, 4_000) for i in range(40)]
    gate = AbstractGate(admission_policies.create(name))
    gate.run(calm, until_s=2_000.0)
    assert len(gate.waits) == 40
    assert max(gate.waits.values()) == 0.0


@pytest.mark.parametrize("known_s", [0.0, 300.0])
def test_unknown_load_never_grows_the_window(name, known_s):
    """Telemetry missing from the start, or lost on the way."""
    policy = admission_policies.create(name)
    gate = AbstractGate(policy)
    gate.blind = lambda load: load if load.sampled_at < known_s else unknown(load)
    seen = visits(rate=0.3, count=150)
    gate.run(seen, until_s=known_s)
    before = policy.window(unknown(gate.load()), known_s)
    for i in range(200):
        policy.on_tick(gate.active, unknown(gate.load()), known_s + i)
        after = policy.window(unknown(gate.load()), known_s + i)
        assert after <= before
        before = after
    if known_s == 0.0 and name not in {"none", "cap", "concur"}:
        # A static cap and nothing need no telemetry; CONCUR starts small.
        assert before <= 4


def test_everybody_is_admitted_without_telemetry(name):
    gate = AbstractGate(admission_policies.create(name), blind=unknown)
    gate.run(visits(rate=0.3, count=60), until_s=20_000.0)
    assert not gate.held


def test_admission_does_not_depend_on_the_order_of_the_backlog(name):
    session_list = visits(rate=0.5, count=30)
    backlog = []
    for visit in session_list:
        gate = AbstractGate(admission_policies.create(name))
        gate.now = visit.arrival_s
        gate._arrive(visit)
        backlog += gate.held
    load = Load(900.0, kv_blocks_total=13_000, kv_blocks_free=9_000, num_waiting=0)
    picks = []
    for held in (backlog, backlog[::-1]):
        policy = admission_policies.create(name)
        policy.on_tick(ActiveSet(), load, 899.0)
        picks.append(policy.admit(held, ActiveSet(), load, 900.0))
    assert picks[0] == picks[1]
    assert picks[0]


@settings(max_examples=60, deadline=None)
@given(
    load=loads(),
    held=st.lists(st.tuples(sessions(), st.integers(0, 2_000_000)), max_size=5),
    present=st.lists(sessions(), max_size=5),
    now=st.floats(-1.0e6, 1.0e7),
)
def test_nothing_raises_on_odd_inputs(name, load, held, present, now):
    policy = admission_policies.create(name)
    backlog = [
        HeldSession(replace(s, session_id=f"h{i}"), s.arrival_time, first)
        for i, (s, first) in enumerate(held)
    ]
    active = ActiveSet({f"a{i}": replace(s, session_id=f"a{i}") for i, s in enumerate(present)})
    for k in range(3):
        policy.on_tick(active, load, now + k)
        assert set(policy.pause(active, load, now + k)) <= set(active.sessions)
        window = policy.window(load, now + k)
        assert window > 0
        assert not math.isnan(window)
        ids = policy.admit(backlog, active, load, now + k)
        assert set(ids) <= {h.session.session_id for h in backlog}
    for session in active.sessions.values():
        policy.on_end(session, now + 4)
    json.dumps(policy.state(), allow_nan=False)


def test_state_is_bounded_over_10000_sessions(name):
    def brief(start: int) -> list[Visit]:
        return [Visit(f"s{i}", float(i), 3.0, 1_000, 500) for i in range(start, start + 5000)]

    policy = admission_policies.create(name)
    gate = AbstractGate(policy)
    gate.run(brief(0), until_s=5_100.0)
    size = len(pickle.dumps(policy.__dict__))
    later = AbstractGate(policy)
    later.run(brief(5_200), until_s=10_300.0)
    assert not later.held
    assert len(pickle.dumps(policy.__dict__)) <= 1.1 * size + 1024
