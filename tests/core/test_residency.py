# SPDX-License-Identifier: Apache-2.0
"""Whose KV the memory is for: a pool of 10,000 blocks of 16 tokens."""

import pytest

from mars.core.coscheduler import CoScheduler
from mars.core.model import Load, Session
from mars.core.policy import scheduling_policies
from mars.core.residency import Reserve, Residency, ResidencyRules, is_cold, known_cached_tokens

POOL = 10_000


class Engine:
    """A CoScheduler with the policy ``mars``, driven by hand; sizes in blocks."""

    def __init__(self, **rules):
        rules = {"least_reserve": 0.0, "most_reserve": 0.0, "idle_weight": 0.0, **rules}
        self.policy = scheduling_policies.create("mars", rules=ResidencyRules(**rules))
        self.co = CoScheduler(self.policy, num_blocks=POOL, block_size=16, emit=lambda e: None)

    def turn(self, name, blocks, at):
        session = self.co.sessions.get(name)
        index = session.num_turns if session else 0
        return self.co.submit(f"{name}/{index}", name, 16 * blocks - 8, at)

    def run(self, turn, at):
        self.co.started(turn, turn.num_cached_tokens, 0, at)
        self.co.served([(turn, turn.num_tokens - turn.num_cached_tokens)], at)
        turn.num_output_tokens = 1

    def finish(self, turn, at):
        blocks = turn.num_tokens // 16
        self.co.finished(turn, self.load(at), at, reason="stop", num_cached_blocks=blocks)

    def load(self, at, num_running=1):
        return Load(at, kv_blocks_total=POOL, kv_blocks_free=0, num_running=num_running)

    def blocked(self, at):
        self.co.expired(self.load(at), at)
        return {request_id.partition("/")[0] for request_id in self.policy.residency.blocked}

    def kept(self, at):
        self.co.expired(self.load(at), at)
        return set(self.policy.residency.kept)


def test_the_oldest_sessions_that_fit_may_start():
    engine = Engine()
    for at, (name, blocks) in enumerate([("a", 6000), ("b", 5000), ("c", 3000)]):
        engine.turn(name, blocks, float(at))
    assert engine.blocked(3.0) == {"b"}


def test_after_a_while_nobody_overtakes_for_memory():
    engine = Engine(overdue_s=60.0)
    for at, (name, blocks) in enumerate([("a", 6000), ("b", 5000), ("c", 3000)]):
        engine.turn(name, blocks, float(at))
    assert engine.blocked(1.0 + 61.0) == {"b", "c"}


def test_running_turns_keep_their_memory_whoever_is_older():
    engine = Engine()
    engine.turn("old", 6000, 0.0)
    engine.run(engine.turn("young", 6000, 1.0), 2.0)
    assert engine.blocked(3.0) == {"old"}


def test_an_idle_older_session_is_kept_a_younger_one_is_not():
    engine = Engine()
    for at, name in enumerate(["old", "young"]):
        turn = engine.turn(name, 6000, float(at))
        engine.run(turn, 10.0 + at)
        engine.finish(turn, 20.0 + at)
    assert engine.kept(22.0) == {"old"}
    value = engine.policy.retention_value
    old, young = engine.co.sessions["old"], engine.co.sessions["young"]
    assert value(young, engine.load(22.0), 22.0) < value(old, engine.load(22.0), 22.0)


def test_an_idle_session_is_kept_for_as_long_as_recomputing_is_dear():
    engine = Engine(patience=1.0, grace_s=2.0)
    turn = engine.turn("a", 625, 0.0)
    engine.run(turn, 0.0)
    engine.finish(turn, 100.0)
    # 10,000 tokens cost 2 s; one turn runs on average: 2 + (1 + 1) x 2 s.
    assert engine.kept(105.9) == {"a"}
    assert engine.kept(106.2) == set()


def test_a_cold_start_leaves_room_for_growth_a_return_needs_none():
    engine = Engine(least_reserve=0.5, most_reserve=0.5)
    first = engine.turn("a", 3000, 0.0)
    engine.run(first, 0.0)
    engine.turn("cold", 4200, 1.0)
    # 4,200 of the 7,000 left, but 0.58 x half of the pool are to stay free.
    assert engine.blocked(2.0) == {"cold"}
    engine.finish(first, 3.0)
    engine.turn("a", 5000, 4.0)
    assert engine.blocked(5.0) == {"cold"}
    assert not is_cold(engine.co.turns["a/1"])


@pytest.mark.parametrize(("place", "waits"), [("earlier", True), ("later", False)])
def test_what_later_sessions_run_with_is_room_for_growth(place, waits):
    engine = Engine(least_reserve=0.5, most_reserve=0.5)
    engine.co.session("a", 0.0 if place == "earlier" else 2.0)
    engine.run(engine.turn("a", 3000, 2.0), 2.0)
    engine.co.session("cold", 1.0)
    engine.turn("cold", 4200, 3.0)
    # As above; but who came later will yield 3,000 when its turn is over.
    assert engine.blocked(4.0) == ({"cold"} if waits else set())


def test_alone_everybody_may_start():
    engine = Engine(most_reserve=0.5)
    turn = engine.turn("a", 9_990, 0.0)
    assert engine.blocked(1.0) == set()
    assert engine.co.may_start(turn, [], 0)


def test_a_shared_prefix_is_charged_to_nobody():
    engine = Engine()
    first = engine.turn("a", 6000, 0.0)
    engine.co.started(first, 16 * 2000, 0, 1.0)
    engine.co.served([(first, 16)], 1.0)
    engine.turn("b", 5900, 2.0)
    assert engine.blocked(3.0) == set()


def test_without_a_known_pool_nobody_is_blocked():
    engine = Engine()
    for name in "abc":
        engine.turn(name, 9000, 0.0)
    engine.co.expired(Load(1.0), 1.0)
    assert not engine.policy.residency.blocked


def test_blocked_turns_come_last_and_do_not_start():
    engine = Engine()
    big = engine.turn("a", 9000, 0.0)
    engine.run(big, 0.0)
    older, small = engine.turn("b", 5000, 1.0), engine.turn("c", 500, 2.0)
    engine.co.expired(engine.load(3.0), 3.0)
    assert engine.co.order([older, small], 3.0) == [small, older]
    assert not engine.co.may_start(older, [big], 1000)
    assert engine.co.may_start(small, [big], 1000)


def test_sessions_that_end_leave_no_trace():
    engine = Engine()
    turn = engine.turn("a", 100, 0.0)
    engine.run(turn, 0.0)
    engine.finish(turn, 1.0)
    assert engine.kept(1.5) == {"a"}
    engine.co.end_session("a")
    assert engine.kept(1.6) == set()
    assert not engine.policy.residency._claims.idle


def test_what_was_evicted_since_the_turn_came_is_not_cached():
    engine = Engine()
    turn = engine.turn("a", 1000, 0.0)
    engine.run(turn, 0.0)
    engine.finish(turn, 1.0)
    back = engine.turn("a", 1100, 2.0)
    assert known_cached_tokens(back) == 16 * 999
    engine.co.cached.evicted("a", 900, 0.0, 3.0)
    assert known_cached_tokens(back) == 16 * 99
    assert is_cold(back)


def test_a_plan_is_renewed_only_when_something_changed():
    class Counting(Residency):
        plans = 0

        def _plan(self, turns, total, block_size, now):
            self.plans += 1

    residency = Counting(scheduling_policies.create("mars").cost)
    load = Load(0.0, kv_blocks_total=POOL)
    for now in (0.0, 0.1, 0.2):
        residency.plan([], load, now)
    assert residency.plans == 1
    residency.left(Session("s", 0.0))
    residency.plan([], load, 0.21)
    assert residency.plans == 2
    residency.plan([], load, 0.5)
    assert residency.plans == 3


@pytest.mark.parametrize("name", ["a", "b"])
def test_priority_is_the_sessions_arrival_not_the_turns(name):
    engine = Engine()
    engine.co.session("b", 0.0)
    engine.turn("a", 6000, 1.0)
    engine.turn("b", 6000, 2.0)
    assert (name in engine.blocked(3.0)) == (name == "a")


def test_short_kinds_have_memory_before_long_ones_that_came_a_little_earlier():
    engine = Engine()
    for i in range(6):
        for kind, blocks, seconds in (("short", 40, 50.0), ("long", 1000, 900.0)):
            turn = engine.turn(f"{kind}{i}", blocks, 0.0)
            engine.run(turn, 0.0)
            engine.finish(turn, seconds)
            engine.co.end_session(f"{kind}{i}")
    engine.run(engine.turn("busy", 9600, 2000.0), 2000.0)
    engine.turn("old long", 390 + 600, 2001.0)
    engine.turn("young short", 39, 2300.0)
    place, sessions = engine.policy.residency.place, engine.co.sessions
    assert place(sessions["young short"]) < place(sessions["old long"])
    assert place(sessions["old long"]) - 2001.0 <= 3600.0
    assert engine.blocked(2301.0) == {"old long"}


def test_the_reserve_follows_waste_with_hysteresis():
    reserve = Reserve(least=0.2, most=0.5)
    assert reserve.share == pytest.approx(0.35)
    for now in range(75, 100, 5):
        reserve.update(float(now))
    assert reserve.share == pytest.approx(0.3)
    reserve.recomputed(0.6, 100.0)  # 0.5% of two minutes: between the bounds
    reserve.update(100.0)
    assert reserve.share == pytest.approx(0.3)
    reserve.recomputed(3.0, 101.0)
    reserve.update(105.0)
    reserve.update(106.0)
    assert reserve.share == pytest.approx(0.32)
    for now in range(110, 2000, 5):
        reserve.recomputed(1.0, float(now))
        reserve.update(float(now))
    assert reserve.share == 0.5
    for now in range(2000, 9000, 5):
        reserve.update(float(now))
    assert reserve.share == 0.2


@pytest.mark.parametrize(("cached", "is_waste"), [(1590, False), (100, True)])
def test_waste_is_what_a_return_must_compute_again(cached, is_waste):
    engine = Engine()
    turn = engine.turn("a", 100, 0.0)
    engine.run(turn, 0.0)
    engine.finish(turn, 1.0)
    back = engine.turn("a", 200, 2.0)
    engine.co.started(back, cached, 1592, 2.0)
    engine.co.served([(back, 10)], 2.0)
    assert (engine.policy.residency.reserve.waste(2.0) > 0.0) == is_waste
