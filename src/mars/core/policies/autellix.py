# SPDX-License-Identifier: Apache-2.0
"""Autellix: least attained service over programs, discretised into queues (PLAS)."""

from __future__ import annotations

from dataclasses import dataclass

from mars.core.levels import Levels
from mars.core.model import Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost


@dataclass(slots=True)
class _Waited:
    """Seconds the session's earlier calls waited, W_p of the paper."""

    wait_s: float = 0.0


@scheduling_policies.register("autellix")
class Autellix(BasePolicy):
    """Program-level attained service: who has been served least goes first.

    ``queue = bucket(tokens computed for the session)``; ``(W_p + W_c) / (T_p + T_c) >= beta``
    lifts a call to the first queue; inside a queue first come, first served:
    ``rank = (queue, arrival of the call)``. W: seconds waited, T: seconds served, of the
    program (p) and of the present call (c).

    Source: Autellix, 2502.13965, section on PLAS; the paper's text gives neither number of
    queues nor thresholds nor beta, so those of the MARS preview (2048/8192/32768 tokens,
    2.0). Deviations: a preempted call is recomputed, where Autellix swaps to host memory;
    the lift lasts while the ratio holds instead of resetting W_c and T_c; sessions are one
    thread each (no ATLAS).

    Ignores: tool time, memory, what is cached.
    """

    has_levels = True

    def __init__(self, *, cost: PrefillCost | None = None, beta: float = 2.0) -> None:
        super().__init__(cost=cost)
        self.beta = beta
        self.levels = Levels()

    def level(self, turn: Turn, now: float) -> int:
        session = turn.session
        queue = self.levels.of(session.num_computed_tokens)
        if queue and not turn.is_running:
            state = session.policy_state
            earlier_s = state.wait_s if isinstance(state, _Waited) else 0.0
            waited_s = earlier_s + _waiting_s(turn, now)
            if waited_s >= self.beta * session.attained_service_s:
                queue = 0
        return queue

    def rank(self, turn: Turn, now: float) -> Rank:
        return (float(self.level(turn, now)), turn.arrival_time)

    def on_submit(self, turn: Turn, now: float) -> None:
        if turn.session.policy_state is None:
            turn.session.policy_state = _Waited()

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        # CoScheduler sets the service time after this call: the first service of a call.
        state = turn.session.policy_state
        if turn.last_service_time is None and isinstance(state, _Waited):
            state.wait_s += max(0.0, now - turn.arrival_time)


def _waiting_s(turn: Turn, now: float) -> float:
    """Seconds the present call has waited since it came or was last served."""
    since = turn.last_service_time
    return max(0.0, now - (turn.arrival_time if since is None else since))
