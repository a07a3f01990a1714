# SPDX-License-Identifier: Apache-2.0
"""What tells one admission policy from another."""

import math

import pytest

from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session
from mars.core.policy import UnknownPolicyError, admission_policies


def make(spec, **options):
    return admission_policies.create(spec, **options)


def held(name, since, tokens):
    return HeldSession(Session(name, since), since, tokens)


def active(*contexts, **fields):
    return ActiveSet(
        {
            f"a{i}": Session(f"a{i}", 0.0, context_tokens=tokens, **fields)
            for i, tokens in enumerate(contexts)
        }
    )


def load(at=0.0, *, free=10_000, slots=None, running=0, queued=0, delay_s=0.0, **fields):
    return Load(
        at,
        kv_blocks_total=10_000,
        kv_blocks_free=free,
        tool_slots=slots,
        tools_running=running if slots else None,
        tools_queued=queued if slots else None,
        tool_queue_delay_s=delay_s if slots else None,
        **fields,
    )


def settle(policy, sessions, sample, seconds):
    for i in range(int(seconds / 0.2)):
        policy.on_tick(sessions, sample(0.2 * i), 0.2 * i)


# --- cap, none -------------------------------------------------------------------------
def test_cap_admits_in_order_of_arrival_up_to_the_cap():
    queue = [held("b", 2.0, 1), held("a", 1.0, 10**9), held("c", 3.0, 1)]
    assert make("cap:3").admit(queue, active(5), load(), 4.0) == ["a", "b"]
    assert make("cap:3").admit(queue, active(5, 5, 5, 5), load(), 4.0) == []
    assert make("none").admit(queue, active(5), load(), 4.0) == ["a", "b", "c"]


@pytest.mark.parametrize("spec", ["cap:0", "working-set:0", "mars:-1"])
def test_impossible_arguments_are_refused(spec):
    with pytest.raises(ValueError, match=spec.partition(":")[0]):
        make(spec)


def test_unknown_options_are_refused():
    with pytest.raises(UnknownPolicyError, match="fast"):
        make("cap:3", fast=True)


# --- aimd-paper ------------------------------------------------------------------------
def test_aimd_shrinks_under_kv_pressure_and_recovers_below_the_band():
    policy = make("aimd-paper")
    settle(policy, active(), lambda t: load(t, free=900), 0.5)
    assert policy.aimd.size == math.floor(math.floor(30 * 0.7) * 0.7)
    shrunk = policy.aimd.size
    settle(policy, active(), lambda t: load(10 + t, free=1_200), 1.0)
    assert policy.aimd.size < shrunk  # 0.88 is inside the band: still pressed
    policy.on_tick(active(), load(20.0, free=2_000), 20.0)
    grown = policy.aimd.size
    policy.on_tick(active(), load(21.0, free=2_000), 21.0)
    assert policy.aimd.size == grown + 1


def test_aimd_kv_cap_falls_linearly_inside_the_band():
    policy = make("aimd-paper")
    assert policy.window(load(free=1_500), 0.0) == 30
    assert policy.window(load(free=1_250), 0.0) == 17
    assert policy.window(load(free=500), 0.0) == 4


def test_aimd_cpu_cap_and_pressure():
    policy = make("aimd-paper")
    policy.on_tick(active(), load(slots=8, running=8), 0.0)
    assert policy.window(load(), 0.0) == 20
    policy.on_tick(active(), load(1.0, slots=8, running=8, queued=24), 1.0)
    assert policy.state()["is_cpu_pressed"]
    assert policy.aimd.size == 21


def test_aimd_packs_short_first_under_kv_pressure_and_long_first_under_cpu_pressure():
    queue = [held("long", 0.0, 60_000), held("short", 1.0, 2_000), held("mid", 2.0, 20_000)]
    policy = make("aimd-paper")
    policy.on_tick(active(), load(free=950), 0.0)
    policy.kv.is_pressed = True
    assert policy.admit(queue, active(1), load(free=2_000), 3.0) == ["short"]
    assert policy.state()["mode"] == "short_first"
    policy = make("aimd-paper")
    policy.on_tick(active(), load(slots=2, running=2, queued=8), 0.0)
    picks = policy.admit(queue, ActiveSet(), load(slots=2, running=2, queued=8), 3.0)
    assert picks == ["long", "mid", "short"][: len(picks)]
    assert policy.state()["mode"] == "cpu_overloaded_long_first"


def test_aimd_lets_two_be_active_without_kv_telemetry():
    policy = make("aimd-paper")
    queue = [held(f"h{i}", i, 100) for i in range(5)]
    assert policy.admit(queue, ActiveSet(), Load(9.0), 9.0) == ["h0", "h1"]
    assert policy.admit(queue, active(1, 1), Load(9.0), 9.0) == []


# --- working set -----------------------------------------------------------------------
def test_working_set_counts_tokens_not_heads():
    policy = make("working-set:1.0")
    queue = [held("large", 0.0, 100_000), held("small", 1.0, 40_000)]
    assert policy.admit(queue, active(100_000), load(), 2.0) == ["small"]


def test_working_set_learns_growth_from_sessions_that_end():
    policy = make("working-set:1.0")
    queue = [held("a", 0.0, 60_000)]
    assert policy.admit(queue, active(90_000), load(), 1.0) == ["a"]
    ended = queue[0].session
    ended.context_tokens = 120_000
    policy.on_end(ended, 5.0)
    # Both now count 30,000 tokens of growth to come: 90 + 30 + 60 + 30 > 160 thousand.
    assert policy.admit([held("b", 6.0, 60_000)], active(90_000), load(), 7.0) == []


def test_working_set_stops_overtaking_and_finally_forces():
    policy = make("working-set:1.0", overdue_s=100.0, force_s=1000.0)
    queue = [held("large", 0.0, 150_000), held("small", 50.0, 1_000)]
    assert policy.admit(queue, active(20_000), load(), 60.0) == ["small"]
    assert policy.admit(queue, active(20_000), load(), 101.0) == []
    assert policy.admit(queue, active(20_000), load(), 1001.0) == ["large"]


def test_an_idle_engine_takes_a_session_that_fits_nowhere():
    for spec in ("working-set", "mars", "thunderagent", "aimd-paper"):
        queue = [held("huge", 0.0, 10**7)]
        assert make(spec).admit(queue, ActiveSet(), load(), 1.0) == ["huge"], spec


# --- mars ------------------------------------------------------------------------------
def test_mars_discounts_sessions_that_are_idle_for_long():
    queue = [held("a", 0.0, 60_000)]
    for now, picks in ((105.0, []), (111.0, ["a"])):
        policy = make("mars:1.0")
        idle = active(80_000, 80_000, activity=Activity.ACTING, last_turn_finished_at=100.0)
        assert policy.admit(queue, idle, load(), now) == picks


def test_mars_lets_in_one_at_a_time_while_the_cpus_are_busy():
    policy = make("mars")
    queue = [held(f"h{i}", i, 1_000) for i in range(3)]
    busy = active(1_000)
    settle(policy, busy, lambda t: load(t, slots=4, running=4, queued=6), 60.0)
    assert policy.admit(queue, busy, load(60.0), 60.0) == ["h0"]
    assert policy.admit(queue[1:], busy, load(61.0), 61.0) == []
    assert policy.admit(queue[1:], busy, load(91.0), 91.0) == ["h1"]


def test_mars_lets_nobody_in_while_the_cpus_are_swamped_but_forces_in_the_end():
    policy = make("mars", force_s=500.0)
    queue = [held("a", 0.0, 1_000)]
    busy = active(1_000)
    settle(policy, busy, lambda t: load(t, slots=4, running=4, queued=12), 60.0)
    assert policy.admit(queue, busy, load(60.0), 60.0) == []
    assert policy.state()["mode"] == "cpu"
    assert policy.admit(queue, busy, load(501.0), 501.0) == ["a"]


def test_mars_takes_a_silent_tool_pool_for_a_swamped_one():
    policy = make("mars")
    busy = active(1_000)
    policy.on_tick(busy, load(0.0, slots=4, running=0), 0.0)
    assert policy.admit([held("a", 0.0, 1_000)], busy, load(0.1), 0.1) == ["a"]
    policy.on_tick(busy, load(1.0), 1.0)
    assert policy.admit([held("b", 0.0, 1_000)], busy, load(1.1), 1.1) == []


def lived(policy, name, first_tokens, seconds, at=0.0):
    """A session of so long a life passes through the policy."""
    visit = held(name, at, first_tokens)
    assert policy.admit([visit], active(), load(), at) == [name]
    policy.on_end(visit.session, at + seconds)


def test_mars_lets_short_kinds_go_first_and_nobody_wait_for_ever():
    policy = make("mars")
    for i in range(4):
        lived(policy, f"s{i}", 500, 50.0)
        lived(policy, f"l{i}", 16_000, 950.0)
    queue = [held("long", 0.0, 17_000), held("short", 600.0, 400)]
    assert policy.admit(queue, active(1_000), load(), 700.0) == ["short", "long"]
    # The most that a short one may be later: 3,600 s x (0.6 - 0.11).
    queue = [held("long", 0.0, 17_000), held("short", 2_400.0, 400)]
    assert policy.admit(queue, active(1_000), load(), 2_400.0) == ["long", "short"]
    # After half an hour the longest held goes first, whatever its kind and the pressure.
    queue = [held("long", 0.0, 17_000), held("short", 600.0, 400)]
    assert policy.admit(queue, active(300_000), load(), 1_801.0) == ["long"]


def test_mars_lets_short_kinds_in_beside_long_ones_that_yield_to_them():
    policy = make("mars")
    for i in range(4):
        lived(policy, f"s{i}", 500, 60.0)
        lived(policy, f"l{i}", 20_000, 900.0)
    longs = [held(f"busy{i}", 5000.0 + i, 20_000) for i in range(12)]
    for start in longs:
        policy.admit([start], ActiveSet(), load(), start.held_since)
    present = ActiveSet({h.session.session_id: h.session for h in longs})
    # 240,000 tokens of first prompts, of a pool of 160,000: 1.5 x the pool.
    queue = [held("another", 5100.0, 20_000), held("short", 5101.0, 500)]
    assert policy.admit(queue, present, load(), 5102.0) == ["short"]
    # Twice the pool is the most for all together.
    more = [held(f"short{i}", 5103.0, 400) for i in range(400)]
    assert len(policy.admit(more, present, load(), 5104.0)) == (320_000 - 240_000) // 400


def test_mars_lets_others_pass_one_that_does_not_fit_for_a_share_of_its_length():
    policy = make("mars", pass_share=0.3, overdue_s=300.0)
    for i in range(3):
        lived(policy, f"s{i}", 90_000, 100.0)
    queue = [held("large", 0.0, 90_000), held("small", 1.0, 70_000)]
    present = active(160_000)
    assert policy.admit(queue, present, load(), 29.0) == ["small"]
    assert policy.admit(queue, present, load(), 31.0) == []


# --- published rivals --------------------------------------------------------------------
def test_thunderagent_resumes_short_ones_every_five_seconds():
    policy = make("thunderagent")
    queue = [held("big", 0.0, 90_000), held("tiny", 1.0, 1_000), held("mid", 1.5, 30_000)]
    present = active(80_000)
    assert policy.admit(queue, present, load(), 2.0) == ["tiny", "mid"]
    assert policy.admit([*queue[:1], held("x", 3.0, 10)], present, load(), 4.0) == []
    assert policy.admit([*queue[:1], held("x", 3.0, 10)], present, load(), 7.0) == ["x"]


def test_concur_shrinks_only_when_full_and_missing():
    policy = make("concur:10")
    full = {"free": 500, "computed_tokens": 100}
    policy.on_tick(active(*[1] * 10), load(**full, recomputed_tokens=10), 0.0)
    assert policy.aimd.size == 10
    policy.on_tick(active(*[1] * 10), load(**full, recomputed_tokens=60), 10.0)
    assert policy.aimd.size == 7
    policy.on_tick(active(*[1] * 7), load(computed_tokens=9, recomputed_tokens=0), 20.0)
    assert policy.aimd.size == 8
    policy.on_tick(active(1), load(computed_tokens=9, recomputed_tokens=0), 30.0)
    assert policy.aimd.size == 8
