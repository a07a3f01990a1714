# SPDX-License-Identifier: Apache-2.0
"""vLLM's priority scheduling, with every request stamped by its session's arrival."""

from __future__ import annotations

from mars.core.model import Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies


@scheduling_policies.register("fcfs-priority")
class FcfsPriority(BasePolicy):
    """Sessions first come, first served, by a stamp that any client can put on a request.

    ``rank = (client's priority, session arrival, turn arrival)``; plain LRU, nothing held.
    What stock vLLM does under ``--scheduling-policy priority`` when the client stamps the
    start of its session. Source: BASELINES.md 6d.

    Ignores: the cache, sizes, tools.
    """

    def rank(self, turn: Turn, now: float) -> Rank:
        return (float(turn.priority), turn.session.arrival_time, turn.arrival_time)
