# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.model import ActiveSet, HeldSession, Load, Session
from mars.core.packing import in_arrival_order
from mars.core.policy import admission_policies
from mars.core.tenancy import in_fair_order


def held(name: str, tenant: str, since: float, tokens: int = 100, weight: float = 1) -> HeldSession:
    session = Session(name, since, tenant=tenant, weight=weight)
    return HeldSession(session, since, tokens)


def active(**tokens_of: int) -> ActiveSet:
    sessions = {t: Session(t, 0.0, tenant=t, context_tokens=n) for t, n in tokens_of.items()}
    return ActiveSet(sessions)


def names(order: list[HeldSession]) -> list[str]:
    return [h.session.session_id for h in in_arrival_order(order)]


def test_one_tenant_is_left_as_it_came() -> None:
    queue = [held("b", "t", 2.0), held("a", "t", 1.0)]
    order = in_fair_order(queue, active(t=10_000))
    assert all(one is two for one, two in zip(order, queue, strict=True))


def test_a_tenant_that_floods_the_queue_does_not_hold_up_another() -> None:
    queue = [held(f"flood{i}", "loud", 0.0) for i in range(100)] + [held("one", "quiet", 50.0)]
    assert names(in_fair_order(queue, ActiveSet())).index("one") == 1
    assert names(in_fair_order(queue, active(loud=500)))[0] == "one"


def test_weights_share_out_the_places() -> None:
    queue = [held(f"a{i}", "a", i, weight=3) for i in range(30)]
    queue += [held(f"b{i}", "b", i) for i in range(30)]
    first = names(in_fair_order(queue, ActiveSet()))[:20]
    assert sum(name.startswith("a") for name in first) == 15


def test_work_under_way_counts_by_its_weight() -> None:
    queue = [held("a", "a", 0.0, weight=4), held("b", "b", 1.0)]
    assert names(in_fair_order(queue, active(a=3_000, b=1_000))) == ["a", "b"]
    assert names(in_fair_order(queue, active(a=5_000, b=1_000))) == ["b", "a"]


def test_places_keep_the_waiting_times_of_the_queue() -> None:
    queue = [held("a1", "a", 0.0), held("a2", "a", 10.0), held("b", "b", 20.0)]
    order = in_fair_order(queue, ActiveSet())
    assert [(h.session.session_id, h.held_since) for h in order] == [
        ("a1", 0.0),
        ("b", 10.0),
        ("a2", 20.0),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 9), st.integers(0, 10_000)), max_size=30
    )
)
def test_everybody_is_there_once_and_no_tenant_overtakes_itself(
    rows: list[tuple[str, float, int]],
) -> None:
    queue = [held(f"{i:02}", *row) for i, row in enumerate(rows)]
    order = in_arrival_order(in_fair_order(queue, ActiveSet()))
    assert sorted(names(order)) == sorted(h.session.session_id for h in queue)
    for tenant in "abc":
        own = [h for h in order if h.session.tenant == tenant]
        arrived = in_arrival_order([h for h in queue if h.session.tenant == tenant])
        assert [h.session.session_id for h in own] == [h.session.session_id for h in arrived]


@pytest.mark.parametrize("policy", ["cap:2", "working-set", "mars", "concur:2"])
def test_policies_follow_the_fair_order(policy: str) -> None:
    load = Load(sampled_at=0.0, kv_blocks_total=10_000, kv_blocks_free=10_000, kv_blocks_retained=0)
    queue = [held(f"flood{i}", "loud", 0.0, 60_000) for i in range(9)]
    queue.append(held("one", "quiet", 1.0, 1_000))
    chosen = admission_policies.create(policy).admit(
        in_fair_order(queue, ActiveSet()), ActiveSet(), load, 2.0
    )
    assert "one" in chosen[:2]
