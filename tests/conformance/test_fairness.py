# SPDX-License-Identifier: Apache-2.0
"""Who may go before whom: a bound on overtaking under any arrivals, and warm returns first.

Bounds on overtaking, each proved from the policy's rank. Let X wait, arrived at ``a``, and Y start
before it, arrived at ``b``.

- ``fcfs``: ranks are arrivals, so ``b <= a``.
- ``mars-paper``: from ``a + 3 x ageing`` on X is at level 0, since no level exceeds 3 and each
  ``ageing`` seconds of waiting take one away. Its rank is then ``(0, 1 + a, a)``; a Y never
  preempted that came later has at least ``(0, 1 + b, b)``, which is larger. So ``b <= a + 90 s``.
- ``mars``: X's deadline is at most ``a + stretch x price(whole prompt)``, whatever is evicted of
  it meanwhile; Y's is at least ``b - lead``. So ``b <= a + lead + stretch x price``.
- ``autellix``: once X has waited ``beta`` times the service its session got it is in the first
  queue, which goes by arrival. So ``b <= a + beta x attained service``.
- ``fcfs-priority`` and ``infercept`` order by session: Y belongs to an older session than X.
- ``continuum``, ``continuum-dynamic`` and ``retained-first`` put sessions with KV first: Y belongs
  to an older session, or returns. Returns of younger sessions may go before X for as long as
  those sessions live, so this bounds nothing in time.
- ``llmd-las`` proves nothing: service decays for all alike.

An overtaking bound is a waiting bound: nobody waits for more than what was there before it
and what came within the bound after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.abstract_server import STEP_BASE_S, STEP_TOKEN_S, AbstractServer, Agent
from mars.core.coscheduler import CoScheduler
from mars.core.model import Load, Turn
from mars.core.policies.mars_paper import MarsPaper
from mars.core.policy import SchedulingPolicy, scheduling_policies

NAMES = scheduling_policies.names()
LOAD = Load(0.0, kv_blocks_total=100_000, kv_blocks_free=50_000)


def _mars_s(policy: Any, passed: Turn, _: float) -> float:
    return policy.lead_s + policy.stretch * policy.cost.prefill_s(passed.num_prompt_tokens)


OVERTAKING_S: dict[str, Callable[[Any, Turn, float], float]] = {
    "fcfs": lambda policy, passed, service_s: 0.0,
    "mars-paper": lambda policy, passed, service_s: policy.levels.last * policy.levels.ageing_s,
    "mars": _mars_s,
    "autellix": lambda policy, passed, service_s: policy.beta * service_s,
}
"""Seconds by which who goes first may have come after who is passed, whose session had been
served for so long."""

BY_SESSION = {"fcfs-priority", "infercept"}
OR_WARM = {"continuum", "continuum-dynamic", "retained-first"}


def claims_a_bound(name: str) -> bool:
    return name in OVERTAKING_S or name in BY_SESSION or name in OR_WARM


def unfair(name: str, policy: SchedulingPolicy, server: AbstractServer) -> list[str]:
    """Overtakings that the policy's bound rules out, in words."""
    found: list[str] = []
    for ahead, passed, service_s in server.overtakings:
        later_s = ahead.arrival_time - passed.arrival_time
        if name in OVERTAKING_S:
            is_fair = later_s <= OVERTAKING_S[name](policy, passed, service_s) + 1e-6
        else:
            is_fair = ahead.session.arrival_time <= passed.session.arrival_time
            is_fair |= name in OR_WARM and ahead.turn_index > 0
        if not is_fair:
            found.append(f"{ahead.request_id} came {later_s:.1f} s after {passed.request_id}")
    return found


@st.composite
def adversaries(draw: st.DrawFn) -> list[Agent]:
    """Sessions that come, return and go as is worst: sizes on both sides of every threshold."""
    sizes = st.sampled_from([1, 500, 2048, 2049, 8193, 40_000, 90_000])
    turns = st.lists(st.tuples(sizes, st.integers(1, 12)), min_size=1, max_size=4)
    moments = st.one_of(st.just(0.0), st.floats(0.0, 400.0))
    return [
        Agent(f"a{i:02}", draw(moments), draw(turns), draw(st.sampled_from([0.0, 0.1, 31.0, 95.0])))
        for i in range(draw(st.integers(2, 20)))
    ]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(agents=adversaries())
def test_overtaking_is_bounded_under_adversarial_arrivals(name: str, agents: list[Agent]) -> None:
    if not claims_a_bound(name):
        pytest.skip("claims no bound")
    policy = scheduling_policies.create(name)
    server = AbstractServer(policy, num_slots=2)
    server.run(agents, until_s=math.inf)
    assert server.finished == {a.session_id for a in agents}
    assert unfair(name, policy, server) == []


def flood(load: float, until_s: float) -> list[Agent]:
    """Endless fresh sessions of one short turn: the worst for whoever is large, or has a past."""
    # Two slots share the steps.
    gap_s = (STEP_TOKEN_S * 1500 + STEP_BASE_S * 5 / 2) / load
    return [Agent(f"f{i:05}", i * gap_s, [(1500, 5)]) for i in range(int(until_s / gap_s))]


def flooded(policy: SchedulingPolicy, until_s: float) -> AbstractServer:
    """A large session that returns twice, in a flood half again what the server can do."""
    server = AbstractServer(policy, num_slots=2)
    victim = Agent("victim", 20.0, [(50_000, 5), (20_000, 5), (9000, 5)])
    server.run([*flood(1.5, until_s), victim], until_s, until_done="victim")
    return server


@pytest.mark.parametrize("name", NAMES)
def test_overtaking_is_bounded_in_a_flood_of_short_turns(name: str) -> None:
    if not claims_a_bound(name):
        pytest.skip("claims no bound")
    policy = scheduling_policies.create(name)
    server = flooded(policy, 300.0)
    assert unfair(name, policy, server) == []


def test_without_ageing_the_flood_drowns_a_large_turn() -> None:
    """The bound is due to the ageing, and the flood is strong enough to show it."""
    assert flooded(MarsPaper(), 200.0).waits["victim"]
    ageless = flooded(MarsPaper(ageing_s=1.0e9), 200.0)
    assert "victim" not in ageless.waits
    assert unfair("mars-paper", MarsPaper(), ageless)


# --- warm returns --------------------------------------------------------------------------

WARM_FIRST: dict[str, Callable[[Any], float]] = {
    "fcfs-priority": lambda policy: math.inf,
    "infercept": lambda policy: math.inf,
    "continuum": lambda policy: math.inf,
    "continuum-dynamic": lambda policy: math.inf,
    "retained-first": lambda policy: math.inf,
    "mars": lambda policy: policy.lead_s,
    "mars-paper": lambda policy: policy.levels.ageing_s,
}
"""How long a cold start may have waited and still goes after the warm return of an older session:
for ever, or until ageing, which bounds everybody's waiting, has its turn."""


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_warm_return_goes_before_cold_starts(name: str, data: st.DataObject) -> None:
    if name not in WARM_FIRST:
        pytest.skip("does not claim it")
    policy = scheduling_policies.create(name)
    co = CoScheduler(policy, num_blocks=100_000, block_size=16, emit=lambda event: None)
    context = data.draw(st.integers(4096, 120_000), label="context")
    first = co.submit("old/0", "old", context, 0.0)
    co.started(first, 0, 0, 0.0)
    co.served([(first, context)], 0.0)
    first.num_output_tokens = 1
    co.finished(first, LOAD, 10.0, reason="stop", num_cached_blocks=context // 16)
    comes_s = data.draw(st.floats(11.0, 5000.0), label="the warm turn comes")
    patience_s = min(WARM_FIRST[name](policy), 1.0e6)
    starts = data.draw(
        st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(2049, 100_000)), max_size=6)
    )
    cold: list[Turn] = []
    for i, (share, num_tokens) in enumerate(starts):
        # Younger than the old session, and not yet aged when it returns.
        arrival_s = max(10.5, comes_s - share * 0.99 * patience_s)
        cold.append(co.submit(f"cold{i}/0", f"cold{i}", num_tokens, arrival_s))
    num_new = data.draw(st.integers(1, 1000), label="new tokens")
    warm = co.submit("old/1", "old", context + num_new, comes_s)
    policy.on_step(co.turns.values(), LOAD, comes_s)
    assert co.order([*cold, warm], comes_s)[0] is warm
