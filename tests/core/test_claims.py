# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mars.core.claims import Claims
from mars.core.model import Session, Turn


def waiting(request_id: str, at: float) -> Turn:
    return Turn(request_id, Session(request_id, at), 0, at, 100)


def names(claims: Claims) -> list[str]:
    return [claim.key[1] for claim in claims]


def test_claims_stay_in_order_as_they_come_and_go() -> None:
    claims = Claims(lambda session: session.arrival_time)
    late, early = waiting("late", 9.0), waiting("early", 1.0)
    assert claims.renew([late]) == []
    claims.add_idle(Session("idle", 5.0))
    claims.renew([late, early])
    assert names(claims) == ["early", "idle", "late"]
    early.is_running = True
    claims.remove_idle("idle")
    assert claims.renew([late, early]) == [early]
    assert names(claims) == ["late"]


def test_an_id_used_again_is_another_claim() -> None:
    claims = Claims(lambda session: session.arrival_time)
    claims.renew([waiting("same", 1.0)])
    second = waiting("same", 2.0)
    claims.renew([second])
    assert [claim.turn for claim in claims] == [second]


def test_moved_places_are_sorted_anew() -> None:
    sign = 1.0
    claims = Claims(lambda session: sign * session.arrival_time)
    claims.add_idle(Session("a", 1.0))
    claims.renew([waiting("b", 2.0), waiting("c", 3.0)])
    sign = -1.0
    claims.move()
    assert names(claims) == ["c", "b", "a"]
