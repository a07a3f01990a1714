# SPDX-License-Identifier: Apache-2.0
"""What policies make of host memory behind the GPU's."""

from __future__ import annotations

import random

from mars.core.admissions.mars import Mars as MarsAdmission
from mars.core.admissions.mori import Mori
from mars.core.copies import HostLink, HostMemory
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, Turn
from mars.core.policies.continuum_dynamic import ContinuumDynamic
from mars.core.policies.infercept import InferCept
from mars.core.policies.mars import Mars
from mars.core.reload import TieredCost
from mars.core.retention import FlatCost

HOST = HostMemory(HostLink(bytes_per_s=1e9, latency_s=0.0), bytes_per_block=16_000, num_blocks=1000)
COST = TieredCost(FlatCost(1e-3), HOST, block_size=16)
"""1 us a token to copy, 1 ms to compute."""


def load(now: float = 0.0, *, total: int = 1000, host: int | None = 10_000) -> Load:
    return Load(
        sampled_at=now,
        kv_blocks_total=total,
        kv_blocks_free=total // 2,
        host_blocks_total=host,
        num_running=2,
    )


def session(name: str, arrival: float = 0.0, tokens: int = 10_000) -> Session:
    made = Session(name, arrival_time=arrival, context_tokens=tokens, cached_tokens=tokens)
    made.host_tokens, made.last_turn_finished_at = tokens, 0.0
    return made


def turn(of: Session, tokens: int, index: int = 0) -> Turn:
    return Turn(f"{of.session_id}/{index}", of, index, of.arrival_time, tokens)


def test_mars_serves_short_contexts_and_sessions_far_on_first() -> None:
    policy = Mars(cost=COST)
    policy.on_step([], load(), 0.0)
    short, long = turn(session("a"), 2_000), turn(session("b"), 40_000)
    late = turn(session("c"), 40_000, index=10)
    assert policy.rank(short, 0.0) < policy.rank(long, 0.0)
    assert policy.rank(late, 0.0) < policy.rank(long, 0.0)
    assert all(policy.may_start(t) for t in (short, long, late))


def test_mars_plans_as_without_where_host_memory_is_small() -> None:
    cold, warm = turn(session("a", tokens=0), 8_000), turn(session("b", tokens=8_000), 8_000)
    warm.num_host_tokens = 8_000
    policy = Mars(cost=COST)
    policy.on_step([cold, warm], load(total=4000, host=2000), 0.0)
    assert policy.rank(warm, 0.0) < policy.rank(cold, 0.0), "by the price of a return"


def test_mars_admits_what_host_memory_keeps() -> None:
    held = [HeldSession(session(f"s{i}", float(i)), float(i), 12_000) for i in range(40)]
    with_host = MarsAdmission().admit(held, ActiveSet(), load(), 40.0)
    without = MarsAdmission().admit(held, ActiveSet(), load(host=None), 40.0)
    assert len(with_host) == 160_000 // 12_000
    assert 0 < len(without) < len(with_host)


def test_infercept_swaps_the_most_wasteful_as_the_link_has_time() -> None:
    policy = InferCept(cost=COST)
    small, large = session("small", tokens=2_000), session("large", tokens=20_000)
    for each in (small, large):
        policy.on_finish(turn(each, each.context_tokens), 0.0)
        assert policy.holds_kv(each, load(), 0.0)
    policy.on_step([], load(), 1.0)  # begins the budget
    policy.on_step([], load(), 1.01)
    assert policy.holds_kv(large, load(), 1.01), "10 ms copy 10,000 tokens"
    assert policy.holds_kv(small, load(), 1.01), "nobody passes the most wasteful"
    policy.on_step([], load(), 1.021)
    assert not policy.holds_kv(large, load(), 1.021)
    assert policy.holds_kv(small, load(), 1.021)
    policy.on_submit(turn(small, 2_100, 1), 1.03)
    policy.on_end(large)
    assert not policy._acting


def test_infercept_swaps_nothing_without_host_memory() -> None:
    policy = InferCept(cost=FlatCost(1e-3))
    idle = session("s")
    policy.on_finish(turn(idle, 10_000), 0.0)
    policy.on_step([], load(host=None), 0.5)
    policy.on_step([], load(host=None), 1.0)
    assert policy.holds_kv(idle, load(host=None), 1.0)


def test_continuum_holds_for_shorter_where_a_reload_is_cheap() -> None:
    kept_s: dict[str, float] = {}
    for name, cost in (("tier", COST), ("none", FlatCost(1e-3))):
        policy, one = ContinuumDynamic(cost=cost), session("s")
        steps = [0.1 * i for i in range(1, 200)]
        kept_s[name] = max((s for s in steps if policy.holds_kv(one, load(s), s)), default=0.0)
    assert kept_s["tier"] == 0.0
    assert kept_s["none"] > 1.0


def act(policy: Mori, active: ActiveSet, until: float) -> None:
    now = 0.0
    while now < until:
        policy.on_tick(active, load(now), now)
        now += 0.5


def test_mori_pauses_the_idlest_when_the_gpu_is_full() -> None:
    policy = Mori()
    busy, idle = session("busy"), session("idle")
    idle.activity = Activity.ACTING
    active = ActiveSet({"idle": idle, "busy": busy})
    act(policy, active, 10.0)
    assert policy.pause(active, load(10.0), 10.0) == ["idle"], "16,000 tokens hold one"
    assert policy.admit([HeldSession(session("new"), 10.0, 100)], active, load(10.0), 10.0) == []
    # Named again until it can stop, and placed anew only after the interval.
    assert policy.pause(active, load(11.0), 11.0) == ["idle"]


def test_mori_resumes_the_busiest_that_waits_and_fits() -> None:
    policy = Mori()
    active = ActiveSet({"a": session("a", tokens=4_000)})
    act(policy, active, 6.0)
    assert policy.pause(active, load(6.0), 6.0) == []
    paused = HeldSession(session("p"), 1.0, 10_000, is_paused=True)
    tooling = HeldSession(session("t"), 1.0, 100, is_paused=True, is_waiting=False)
    new = HeldSession(session("n"), 0.0, 5_000)
    assert policy.admit([new, paused, tooling], active, load(6.0), 6.0) == ["p"]
    policy.on_end(active.sessions["a"], 7.0)
    assert not policy._steps


def test_mars_lets_nobody_pass_who_came_much_later() -> None:
    """3,600 s + 0.03 s x the prompt's tokens (docs/policies.md)."""
    policy, rng = Mars(cost=COST), random.Random(3)
    policy.on_step([], load(), 0.0)
    for _ in range(500):
        first = turn(session("a", rng.uniform(0.0, 9e3)), rng.randrange(1, 130_000))
        first.turn_index = rng.randrange(200)
        bound_s = 3600.0 + 0.03 * first.num_prompt_tokens
        came = first.session.arrival_time + bound_s * rng.uniform(1.001, 1.1)
        later = turn(session("b", came), rng.randrange(1, 130_000), rng.randrange(200))
        assert policy.rank(first, came) < policy.rank(later, came)
