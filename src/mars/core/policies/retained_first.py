# SPDX-License-Identifier: Apache-2.0
"""Sessions whose KV is still there first, then sessions by arrival; a stamp and no more."""

from __future__ import annotations

from mars.core.model import Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies


@scheduling_policies.register("retained-first")
class RetainedFirst(BasePolicy):
    """First come, first served over sessions, those with their KV still present before.

    ``rank = (KV of at least half of the last context present ? 0 : 1, session arrival,
    turn arrival)``. The honest ceiling of what request stamps alone reach: best of an
    independent leaderboard (PEERS.md section 4, number 7). No source gives its rule for
    "present"; half of the context is chosen.

    Ignores: retention, sizes, tools.
    """

    def rank(self, turn: Turn, now: float) -> Rank:
        session = turn.session
        is_warm = turn.is_running or (
            session.cached_tokens > 0 and 2 * session.cached_tokens >= session.context_tokens
        )
        return (0.0 if is_warm else 1.0, session.arrival_time, turn.arrival_time)
