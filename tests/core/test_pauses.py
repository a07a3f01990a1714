# SPDX-License-Identifier: Apache-2.0
"""Whatever a policy asks for, a pause is at a turn boundary, and nobody is paused without bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, SessionState
from mars.core.pauses import Pauses
from mars.core.policy import BaseAdmission, admission_policies

LOAD = Load(0.0)


class Tyrant(BaseAdmission):
    """Pauses everybody at each chance, and lets nobody back."""

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        return list(active.sessions)

    def admit(
        self, held: Sequence[HeldSession], active: ActiveSet, load: Load, now: float
    ) -> list[str]:
        return []


def session(session_id: str, **fields: object) -> Session:
    made = Session(session_id, 0.0, activity=Activity.ACTING, num_turns=1, context_tokens=5000)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def active(*sessions: Session) -> ActiveSet:
    return ActiveSet({s.session_id: s for s in sessions})


def test_a_session_inside_a_turn_is_marked_and_one_between_turns_stopped() -> None:
    running, idle, last = session("a", num_open_turns=1), session("b"), session("c")
    crowd = active(running, idle, last)
    assert Pauses().choose(Tyrant(), crowd, LOAD, 1.0) == [idle]
    assert running.is_pausing
    assert not last.is_pausing  # the last one always stays


def test_a_mark_is_taken_back_when_the_policy_does_not_repeat_it() -> None:
    crowd = active(session("a", num_open_turns=1), session("b", num_open_turns=1))
    Pauses().choose(Tyrant(), crowd, LOAD, 1.0)
    assert crowd.sessions["a"].is_pausing
    Pauses().choose(BaseAdmission(), crowd, LOAD, 2.0)
    assert not crowd.sessions["a"].is_pausing


def test_a_stopped_session_is_held_with_its_context_and_resumes() -> None:
    crowd, pauses = active(session("a"), session("b")), Pauses()
    held = pauses.stop(crowd.sessions["a"], crowd, 10.0)
    assert list(crowd.sessions) == ["b"]
    assert (held.is_paused, held.is_waiting, held.num_prompt_tokens) == (True, False, 5000)
    assert held.session.state is SessionState.HELD
    assert pauses.resume(held, 25.0) == 15.0
    crowd = active(held.session, session("b"))
    assert pauses.choose(Tyrant(), crowd, LOAD, 26.0) == [crowd.sessions["b"]]  # a: a turn first
    held.session.num_turns += 1
    assert pauses.choose(Tyrant(), crowd, LOAD, 27.0) == [held.session]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0.1, 400.0)), min_size=1, max_size=120),
    st.floats(10.0, 2000.0),
)
def test_nobody_is_paused_unboundedly(steps: list[tuple[int, float]], limit_s: float) -> None:
    """Under the worst policy, with turns that come and end at any time."""
    pauses, policy, now, longest_s = Pauses(limit_s), Tyrant(), 0.0, 0.0
    crowd = active(*(session(f"s{i}") for i in range(5)))
    held: dict[str, HeldSession] = {}
    for who, wait_s in steps:
        now += wait_s
        longest_s = max(longest_s, wait_s)
        for session_id in pauses.overdue(held.values(), now):
            back = held.pop(session_id)
            pauses.resume(back, now)
            crowd.sessions[session_id] = back.session
        if (running := crowd.sessions.get(f"s{who}")) is not None:
            running.num_turns += 1
        for stopped in pauses.choose(policy, crowd, LOAD, now):
            held[stopped.session_id] = pauses.stop(stopped, crowd, now)
        assert len(crowd) >= 1
        for h in held.values():
            # One look at the queue later than the limit, at most.
            assert h.session.paused_s + now - h.held_since <= limit_s + longest_s
        assert all(s.paused_s <= limit_s + longest_s for s in crowd.sessions.values())


def loaded(used_tokens: int, policy_name: str) -> tuple[Any, ActiveSet, Load]:
    policy = admission_policies.create(policy_name)
    crowd = active(
        session("small", context_tokens=20_000, arrival_time=1.0),
        session("large", context_tokens=60_000, arrival_time=2.0),
        session("busy", context_tokens=10_000, num_open_turns=1, activity=Activity.REASONING),
    )
    load = Load(0.0, kv_blocks_total=used_tokens // 16, kv_blocks_free=0, block_size=16)
    policy.on_tick(crowd, load, 0.0)
    return policy, crowd, load


def test_thunderagent_pauses_acting_sessions_the_smallest_first_until_the_rest_fits() -> None:
    policy, crowd, load = loaded(75_000, "thunderagent")
    assert policy.pause(crowd, load, 0.0) == ["small"]
    policy, crowd, load = loaded(5_000, "thunderagent")
    assert policy.pause(crowd, load, 0.0) == ["small", "large", "busy"]
    policy, crowd, load = loaded(200_000, "thunderagent")
    assert policy.pause(crowd, load, 0.0) == []


def test_thunderagent_resumes_who_waits_then_the_new_then_those_in_tools() -> None:
    policy, _, load = loaded(200_000, "thunderagent")

    def held(name: str, tokens: int, *, is_paused: bool, is_waiting: bool) -> HeldSession:
        return HeldSession(session(name), 0.0, tokens, is_paused=is_paused, is_waiting=is_waiting)

    queue = [
        held("in-tool", 1_000, is_paused=True, is_waiting=False),
        held("new", 1_000, is_paused=False, is_waiting=True),
        held("waits", 30_000, is_paused=True, is_waiting=True),
    ]
    assert policy.admit(queue, active(session("x")), load, 10.0) == ["waits", "new", "in-tool"]


def test_concur_pauses_the_last_to_arrive_beyond_its_window() -> None:
    policy = admission_policies.create("concur:1")
    crowd = active(*(session(f"s{i}", arrival_time=float(i)) for i in range(3)))
    assert policy.pause(crowd, LOAD, 0.0) == ["s2", "s1"]
    back = HeldSession(session("s1", arrival_time=1.0), 9.0, 100, is_paused=True)
    new = HeldSession(session("new", arrival_time=3.0), 3.0, 100)
    assert policy.admit([new, back], ActiveSet(), LOAD, 10.0) == ["s1"]
