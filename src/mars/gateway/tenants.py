# SPDX-License-Identifier: Apache-2.0
"""What each tenant may have: its weight, its limits, and its place in the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mars.config import KeyConfig
from mars.core.model import ActiveSet, HeldSession, Session
from mars.core.tenancy import in_fair_order
from mars.gateway.openai import ApiError

DEFAULT = "default"
"""The tenant of who sends no key of ``gateway.keys``."""
TURN_RETRY_S = 5
HELD_RETRY_S = 20
"""When to come back: a turn is over sooner than a session. Agents give up above 30 s."""


@dataclass(slots=True, frozen=True)
class Limits:
    """Weight and bounds of one tenant; None does not bound."""

    weight: float = 1.0
    max_active_sessions: int | None = None
    max_held_sessions: int | None = None
    max_turns: int | None = None


UNLIMITED = Limits()


class Tenants:
    """The tenants that ``gateway.keys`` name. Several keys of one: the tightest limit counts.

    Args:
        keys: as configured.
    """

    def __init__(self, keys: Iterable[KeyConfig] = ()) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()
        """Requests answered 429, by tenant and limit."""
        self._limits: dict[str, Limits] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[KeyConfig]) -> None:
        """From now on these keys count. Sessions that arrived keep their weight."""
        limits: dict[str, Limits] = {}
        for key in keys:
            tenant = key.tenant or key.name
            known = limits.get(tenant, UNLIMITED)
            limits[tenant] = Limits(
                key.weight,
                _tighter(known.max_active_sessions, key.max_active_sessions),
                _tighter(known.max_held_sessions, key.max_held_sessions),
                _tighter(known.max_turns, key.max_turns),
            )
        self._limits = limits

    def names(self) -> list[str]:
        """All tenants; the default one is always there."""
        return sorted({DEFAULT, *self._limits})

    def weight(self, tenant: str) -> float:
        """Share of a tenant where sessions are held."""
        return self._limits.get(tenant, UNLIMITED).weight

    def check_turn(self, tenant: str, active: ActiveSet) -> None:
        """Refuse a further turn of an active session above ``max_turns``.

        Raises:
            ApiError: 429.
        """
        limit = self._limits.get(tenant, UNLIMITED).max_turns
        if limit is not None and _num_turns(tenant, active) >= limit:
            raise self.refuse(tenant, "max_turns", f"{limit} turns at once", TURN_RETRY_S)

    def check_hold(self, tenant: str, held: Iterable[Session]) -> None:
        """Refuse a further held session above ``max_held_sessions``.

        Raises:
            ApiError: 429.
        """
        limit = self._limits.get(tenant, UNLIMITED).max_held_sessions
        if limit is not None and sum(s.tenant == tenant for s in held) >= limit:
            raise self.refuse(
                tenant, "max_held_sessions", f"{limit} sessions waiting", HELD_RETRY_S
            )

    def refuse(self, tenant: str, limit: str, bound: str, retry_after_s: int) -> ApiError:
        """The error of a limit that is reached; counts it."""
        self.refused[tenant, limit] += 1
        return ApiError(
            429,
            f"tenant {tenant!r} has its {bound} (gateway.keys, {limit}); send the request "
            f"again in {retry_after_s} s",
            headers={"Retry-After": str(retry_after_s)},
        )

    def queue(self, held: Sequence[HeldSession], active: ActiveSet) -> Sequence[HeldSession]:
        """The held sessions that may start now, in fair order between tenants."""
        if not self._limits:
            return held
        rooms: dict[str, int] = {}
        out: list[HeldSession] = []
        for session in in_fair_order(held, active):
            tenant = session.session.tenant
            if tenant not in rooms:
                rooms[tenant] = self._room(tenant, active)
            if rooms[tenant] > 0:
                rooms[tenant] -= 1
                out.append(session)
        return out

    def _room(self, tenant: str, active: ActiveSet) -> int:
        """How many more sessions of a tenant may start; a held session starts with a turn."""
        limits, room = self._limits.get(tenant, UNLIMITED), 1 << 30
        if limits.max_active_sessions is not None:
            num_active = sum(s.tenant == tenant for s in active.sessions.values())
            room = min(room, limits.max_active_sessions - num_active)
        if limits.max_turns is not None:
            room = min(room, limits.max_turns - _num_turns(tenant, active))
        return room


def _num_turns(tenant: str, active: ActiveSet) -> int:
    """Open turns of a tenant, and first turns of sessions that were let in just now."""
    return sum(
        max(s.num_open_turns, int(s.num_turns == 0))
        for s in active.sessions.values()
        if s.tenant == tenant
    )


def _tighter(one: int | None, two: int | None) -> int | None:
    return two if one is None else one if two is None else min(one, two)
