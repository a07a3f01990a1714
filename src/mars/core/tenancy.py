# SPDX-License-Identifier: Apache-2.0
"""Between tenants, whoever has the least admitted work per weight goes next."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from mars.core.model import ActiveSet, HeldSession
from mars.core.packing import in_arrival_order


def in_fair_order(held: Sequence[HeldSession], active: ActiveSet) -> list[HeldSession]:
    """The held sessions as an admission policy is to see them: fair between tenants.

    The order is made by letting the tenant with the least ``work / weight`` place its first
    arrival next, again and again; its work (tokens) is the context of its active sessions
    plus the prompts it has placed. That is max-min fairness on the working set, without
    history: a tenant that has nothing in the engine is before any that has.

    The sessions then get one another's arrival times: the first of the order waits since
    the first arrival, and so on. A policy so keeps its own rules of order and of overdue
    sessions, and applies them to places in the fair queue. Sessions of one tenant never
    change places, and those of a single tenant are returned as they came.

    Source: weighted max-min fairness (Demers 1989) on the dominant resource (Ghodsi 2011,
    DRF), KV being it. Ignores: CPU use, time.
    """
    queues: dict[str, deque[HeldSession]] = {}
    if len({h.session.tenant for h in held}) < 2:
        return list(held)
    for session in in_arrival_order(held):
        queues.setdefault(session.session.tenant, deque()).append(session)
    work = dict.fromkeys(queues, 0.0)
    for session in active.sessions.values():
        if session.tenant in work:
            work[session.tenant] += max(1, session.context_tokens)

    def place(tenant: str) -> tuple[float, float, str]:
        first = queues[tenant][0]
        return work[tenant] / first.session.weight, first.held_since, tenant

    order: list[HeldSession] = []
    heap = [place(tenant) for tenant in queues]
    heapq.heapify(heap)
    since = -math.inf
    for arrival in sorted(h.held_since for h in held):
        tenant = heapq.heappop(heap)[2]
        session = queues[tenant].popleft()
        # Equal times would leave the order to the session ids.
        since = max(arrival, math.nextafter(since, math.inf))
        order.append(replace(session, held_since=since))
        work[tenant] += max(1, session.num_prompt_tokens)
        if queues[tenant]:
            heapq.heappush(heap, place(tenant))
    return order
