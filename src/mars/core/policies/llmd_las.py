# SPDX-License-Identifier: Apache-2.0
"""llm-d's program-aware fairness: least attained service with decay, and head age."""

from __future__ import annotations

from dataclasses import dataclass

from mars.core.model import Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost


@dataclass(slots=True)
class _Service:
    """Decaying service (weighted tokens) and the time it refers to."""

    tokens: float = 0.0
    at: float = 0.0


@scheduling_policies.register("llmd-las")
class LlmdLas(BasePolicy):
    """Least attained service over sessions, where old service counts less and less.

    ``score = 0.8 x (1 - service / largest service) + 0.2 x min(1, wait / age_s)``, the
    highest first; service = prompt tokens + 2 x output tokens, halved every 60 s.

    Source: llm-d router, plug-in ``program-aware-fairness`` (weights, half-life, factor 2).
    Deviations: it orders flows before the engine, here it orders turns in it; the age is
    normalised by ``age_s``, where the router takes the oldest head of its queues.

    Ignores: memory, what is cached, tools.
    """

    def __init__(
        self, *, cost: PrefillCost | None = None, half_life_s: float = 60.0, age_s: float = 60.0
    ) -> None:
        super().__init__(cost=cost)
        if half_life_s <= 0 or age_s <= 0:
            raise ValueError("llmd-las: half_life_s and age_s must be positive")
        self.half_life_s = half_life_s
        self.age_s = age_s
        self._largest = _Service()

    def rank(self, turn: Turn, now: float) -> Rank:
        state = turn.session.policy_state
        own = self._decayed(state, now) if isinstance(state, _Service) else 0.0
        largest = self._decayed(self._largest, now)
        share = min(1.0, own / largest) if largest > 1.0e-9 else 0.0
        since = turn.last_service_time
        waited_s = max(0.0, now - (turn.arrival_time if since is None else since))
        age = min(1.0, waited_s / self.age_s)
        return (-(0.8 * (1.0 - share) + 0.2 * age), turn.arrival_time)

    def on_submit(self, turn: Turn, now: float) -> None:
        if turn.session.policy_state is None:
            turn.session.policy_state = _Service(at=now)

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        state = turn.session.policy_state
        if not isinstance(state, _Service):
            return
        weight = 1.0 if turn.is_prefill else 2.0
        state.tokens = self._decayed(state, now) + weight * num_tokens
        state.at = now
        if state.tokens >= self._decayed(self._largest, now):
            self._largest.tokens, self._largest.at = state.tokens, now

    def _decayed(self, service: _Service, now: float) -> float:
        elapsed_s = max(0.0, now - service.at)
        return float(service.tokens * 0.5 ** (elapsed_s / self.half_life_s))
