# SPDX-License-Identifier: Apache-2.0
"""A control plane reduced to admission: sessions arrive, are active for a while, end."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, SessionState
from mars.core.policy import AdmissionPolicy

TICK_S = 1.0


@dataclass
class Visit:
    """One session: it comes, its context grows linearly while active, it goes."""

    session_id: str
    arrival_s: float
    active_s: float
    first_tokens: int
    growth_tokens: int


@dataclass
class AbstractGate:
    """Runs visits through an admission policy; records waits and the largest crowd."""

    policy: AdmissionPolicy
    pool_blocks: int = 13_000
    blind: Callable[[Load], Load] = lambda load: load
    """What the policy gets to see of the load."""
    now: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    max_active: int = 0
    excess: float = 0.0
    """Largest number of sessions above the window that an admission led to."""
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held: list[HeldSession] = []
        self.active = ActiveSet()
        self.visits: dict[str, Visit] = {}
        self.admitted_at: dict[str, float] = {}

    def run(self, visits: list[Visit], until_s: float) -> None:
        self.visits = {v.session_id: v for v in visits}
        queue = [(v.arrival_s, 0, v.session_id) for v in visits]
        queue += [(i * TICK_S, 1, "") for i in range(int(until_s / TICK_S))]
        heapq.heapify(queue)
        while queue and queue[0][0] <= until_s:
            self.now, what, session_id = heapq.heappop(queue)
            if what == 0:
                self._arrive(self.visits[session_id])
            elif what == 1:
                self._grow()
                self.policy.on_tick(self.active, self.load(), self.now)
            else:
                self._end(session_id)
            for ended in self._admit():
                heapq.heappush(queue, (self.now + self.visits[ended].active_s, 2, ended))

    def load(self) -> Load:
        used = min(self.pool_blocks, self.active.context_tokens // 16)
        queued = max(0, len(self.active) // 2 - 8)
        load = Load(
            self.now,
            kv_blocks_total=self.pool_blocks,
            kv_blocks_free=self.pool_blocks - used,
            num_running=len(self.active),
            num_waiting=0,
            num_held=len(self.held),
            computed_tokens=1000,
            recomputed_tokens=500 if used == self.pool_blocks else 10,
            tool_slots=8,
            tools_running=min(8, len(self.active) // 2),
            tools_queued=queued,
            tool_queue_delay_s=0.5 * queued,
        )
        return self.blind(load)

    def _arrive(self, visit: Visit) -> None:
        session = Session(visit.session_id, self.now, state=SessionState.HELD)
        self.held.append(HeldSession(session, self.now, visit.first_tokens))

    def _grow(self) -> None:
        for session_id, session in self.active.sessions.items():
            visit = self.visits[session_id]
            share = min(1.0, (self.now - self.admitted_at[session_id]) / visit.active_s)
            session.context_tokens = visit.first_tokens + int(share * visit.growth_tokens)
            session.activity = Activity.ACTING if int(self.now) % 2 else Activity.REASONING

    def _end(self, session_id: str) -> None:
        session = self.active.sessions.pop(session_id)
        visit = self.visits[session_id]
        session.context_tokens = visit.first_tokens + visit.growth_tokens
        self.policy.on_end(session, self.now)

    def _admit(self) -> list[str]:
        load = self.load()
        ids = self.policy.admit(tuple(self.held), self.active, load, self.now)
        by_id = {h.session.session_id: h for h in self.held}
        assert len(set(ids)) == len(ids), "admitted twice"
        assert set(ids) <= set(by_id), "admitted who is not held"
        for session_id in ids:
            held = by_id[session_id]
            self.held.remove(held)
            self.active.sessions[session_id] = replace(held.session, state=SessionState.ACTIVE)
            self.admitted_at[session_id] = self.now
            self.waits[session_id] = self.now - held.held_since
            self.order.append(session_id)
        if ids:
            self.excess = max(self.excess, len(self.active) - self.policy.window(load, self.now))
        self.max_active = max(self.max_active, len(self.active))
        return ids
