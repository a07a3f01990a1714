# SPDX-License-Identifier: Apache-2.0
"""What tells one scheduling policy from another."""

from pathlib import Path

import pytest

from mars.core import admissions, policies
from mars.core.coscheduler import CoScheduler
from mars.core.model import Load, Session, ToolCall, Turn
from mars.core.policy import scheduling_policies

LOAD = Load(0.0, kv_blocks_total=10_000, kv_blocks_free=1_000, num_waiting=2)


def make(name, **options):
    return scheduling_policies.create(name, **options)


def idle(name="s", *, arrival=0.0, tokens=16_000, since=100.0, tool=None):
    session = Session(name, arrival, num_turns=3, context_tokens=tokens, cached_tokens=tokens)
    session.last_turn_finished_at = since
    if tool:
        session.tool = ToolCall("t", name, tool, since)
    return session


def turn(session, *, arrival, prompt, cached=0, request_id="r", **fields):
    return Turn(
        request_id,
        session,
        1,
        arrival,
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        **fields,
    )


def scheduler(policy):
    return CoScheduler(policy, num_blocks=10_000, block_size=16, emit=lambda event: None)


@pytest.mark.parametrize("package", [policies, admissions])
def test_a_policy_is_one_short_file_that_names_its_source_and_limits(package):
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= 120, path.name
        if path.name not in {"__init__.py", "fcfs.py", "none.py"}:
            assert "Ignores: " in text, path.name


# --- mars-paper ----------------------------------------------------------------------
def test_paper_level_follows_uncached_work_not_prompt_length():
    policy = make("mars-paper")
    warm = turn(idle(), arrival=0.0, prompt=60_000, cached=59_000)
    cold = turn(Session("c", 0.0), arrival=0.0, prompt=60_000)
    assert policy.level(warm, 0.0) == 0
    assert policy.level(cold, 0.0) == 3
    assert policy.rank(warm, 0.0) < policy.rank(cold, 0.0)
    assert policy.prefill_quantum(cold, 0.0) == 256
    assert policy.prefill_quantum(warm, 0.0) == 2048


def test_paper_level_lives_in_the_session():
    """A full quantum demotes; the next turn of the session starts where it left."""
    policy = make("mars-paper")
    co = scheduler(policy)
    first = co.submit("a/0", "a", 2000 + 2048, 0.0)
    co.started(first, 0, 0, 0.0)
    assert policy.level(first, 0.0) == 1
    co.served([(first, 1024)], 0.0)
    co.served([(first, 1024)], 0.1)
    assert policy.level(first, 0.1) == 2
    co.finished(first, LOAD, 0.2, reason="abort", num_cached_blocks=0)
    second = co.submit("a/1", "a", 1000, 0.3)
    assert policy.level(second, 0.3) == 2
    assert policy.level(second, 0.3 + 60.0) == 0


def test_paper_decode_is_protected_and_clears_the_level():
    policy = make("mars-paper")
    session = Session("a", 0.0, policy_state=2)
    decoding = turn(
        session,
        arrival=0.0,
        prompt=9000,
        num_computed_tokens=9000,
        num_output_tokens=1,
        is_running=True,
    )
    fresh = turn(Session("b", 0.0), arrival=0.0, prompt=10)
    assert policy.rank(decoding, 5.0) < policy.rank(fresh, 5.0)
    assert policy.prefill_quantum(decoding, 5.0) is None
    policy.on_service(decoding, 1, 5.0)
    assert session.policy_state == 0


def test_paper_retains_while_the_saving_exceeds_the_cost():
    policy = make("mars-paper")
    session = idle(tokens=16_000, since=100.0)
    # Saving 16,000 x 2e-4 = 3.2 s; cost: a tenth of the pool for every second.
    assert policy.holds_kv(session, LOAD, 100.0 + 31.0)
    assert not policy.holds_kv(session, LOAD, 100.0 + 33.0)
    nobody_waits = Load(0.0, kv_blocks_total=10_000, num_waiting=0)
    assert policy.holds_kv(session, nobody_waits, 100.0 + 33.0)


# --- baselines -----------------------------------------------------------------------
def test_fcfs_priority_obeys_the_stamp_then_the_session():
    policy = make("fcfs-priority")
    old = turn(Session("old", 0.0), arrival=50.0, prompt=10)
    new = turn(Session("new", 40.0), arrival=41.0, prompt=10)
    urgent = turn(Session("late", 60.0), arrival=60.0, prompt=10, priority=-1)
    assert sorted([new, old, urgent], key=lambda t: policy.rank(t, 99.0)) == [urgent, old, new]


def test_retained_first_takes_warm_sessions_first():
    policy = make("retained-first")
    warm = turn(idle("w", arrival=50.0), arrival=60.0, prompt=17_000)
    lost = idle("l", arrival=0.0)
    lost.cached_tokens = 1000
    evicted = turn(lost, arrival=55.0, prompt=17_000)
    assert policy.rank(warm, 99.0) < policy.rank(evicted, 99.0)


def test_autellix_serves_the_least_served_and_lifts_the_starved():
    policy = make("autellix")
    heavy = Session("h", 0.0, num_computed_tokens=50_000, attained_service_s=10.0)
    waiting = turn(heavy, arrival=100.0, prompt=10)
    fresh = turn(Session("f", 110.0), arrival=110.0, prompt=10)
    assert policy.rank(fresh, 110.0) < policy.rank(waiting, 110.0)
    # Waited 20 s, twice its service: first queue, and there it came first.
    assert policy.rank(waiting, 120.0) < policy.rank(fresh, 120.0)


def test_infercept_holds_while_holding_wastes_less():
    policy = make("infercept")
    session = idle(tokens=16_000)
    alone = Load(0.0, kv_blocks_total=10_000, kv_blocks_free=9_000)
    # discard = 3.2 s x C / 2, preserve = elapsed x C: the break-even is at 1.6 s.
    assert policy.holds_kv(session, alone, 100.0 + 1.59)
    assert not policy.holds_kv(session, alone, 100.0 + 1.61)
    # 8,000 other blocks: + 3.2 s x 128,000 / 16,000 = 25.6 s.
    crowded = Load(0.0, kv_blocks_total=10_000, kv_blocks_free=1_000)
    assert policy.holds_kv(session, crowded, 100.0 + 27.1)
    assert not policy.holds_kv(session, crowded, 100.0 + 27.3)


def returns(policy, gaps, tool):
    """Sessions whose second turn comes after each gap, from that tool."""
    co = scheduler(policy)
    for i, gap_s in enumerate(gaps):
        sid, now = f"{tool}{i}", 1000.0 * i
        first = co.submit(f"{sid}/0", sid, 1000, now)
        co.started(first, 0, 0, now)
        if co.finished(first, LOAD, now, reason="stop", num_cached_blocks=60):
            co.held.released(sid, "expired", now)
        co.tool_started(ToolCall("t", sid, tool, now))
        second = co.submit(f"{sid}/1", sid, 1100, now + gap_s)
        co.started(second, 0, 0, now + gap_s)
        if co.finished(second, LOAD, now + gap_s, reason="stop", num_cached_blocks=60):
            co.held.released(sid, "expired", now + gap_s)
        co.end_session(sid)


def test_continuum_holds_two_seconds_unless_the_tool_is_slow():
    policy = make("continuum")
    returns(policy, [30.0, 20.0], "test")
    returns(policy, [0.1], "read")
    for tool, held in (("read", True), ("test", False), ("unknown", True)):
        assert policy.holds_kv(idle(tool=tool), LOAD, 101.0) is held
        assert not policy.holds_kv(idle(tool=tool), LOAD, 102.5)


def test_continuum_keeps_the_hold_of_a_waiting_turn_and_releases_the_latest_first():
    policy = make("continuum")
    waiting = idle()
    waiting.num_open_turns = 1
    assert policy.holds_kv(waiting, LOAD, 500.0)
    old, new = idle("old", arrival=1.0), idle("new", arrival=50.0)
    assert policy.retention_value(new, LOAD, 60.0) < policy.retention_value(old, LOAD, 60.0)


def test_continuum_puts_warm_returns_before_older_cold_ones():
    policy = make("continuum")
    co = scheduler(policy)
    first = co.submit("a/0", "a", 1000, 50.0)
    co.started(first, 0, 0, 50.0)
    co.finished(first, LOAD, 51.0, reason="stop", num_cached_blocks=60)
    back = co.submit("a/1", "a", 1100, 52.0)
    cold = turn(Session("b", 0.0), arrival=0.0, prompt=100)
    assert policy.rank(back, 53.0) < policy.rank(cold, 53.0)


def test_continuum_dynamic_learns_the_time_to_live_per_tool():
    policy = make("continuum-dynamic", num_cold=20)
    returns(policy, [0.5] * 30, "read")
    returns(policy, [400.0] * 30, "test")
    # A warm return of 16,000 tokens saves 3.2 s: worth waiting 0.5 s, not 400 s.
    assert policy.holds_kv(idle(tool="read"), LOAD, 100.4)
    assert not policy.holds_kv(idle(tool="read"), LOAD, 100.6)
    assert not policy.holds_kv(idle(tool="test"), LOAD, 100.1)


def test_continuum_dynamic_starts_from_exponential_returns():
    policy = make("continuum-dynamic")
    session = idle(tokens=100_000)
    # ln(20 s) = 2.996 s.
    assert policy.holds_kv(session, LOAD, 102.9)
    assert not policy.holds_kv(session, LOAD, 103.1)


def test_llmd_forgets_service_with_time():
    policy = make("llmd-las")
    co = scheduler(policy)
    heavy = co.submit("h/0", "h", 9000, 0.0)
    light = co.submit("l/0", "l", 100, 0.0)
    co.started(heavy, 0, 0, 0.0)
    co.started(light, 0, 0, 0.0)
    co.served([(heavy, 8000), (light, 50)], 0.0)
    assert policy.rank(light, 1.0) < policy.rank(heavy, 1.0)
    # Ten half-lives of waiting against somebody served all along.
    for i in range(10):
        co.served([(light, 5)], 60.0 * (i + 1))
    assert policy.rank(heavy, 600.0) < policy.rank(light, 600.0)
