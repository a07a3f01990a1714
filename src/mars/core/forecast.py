# SPDX-License-Identifier: Apache-2.0
"""Bounded online forecasts about sessions, learned from those that finished."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session

RETURNS_S = 60.0
"""Most tools take less; the longer a session is away beyond it, the less it counts."""


class GrowthForecast:
    """How much larger a session's context will still become (tokens).

    ``forecast = share x mean growth of the last ``window`` finished sessions`` (defaults
    40 and one half: DESIGN section 10, as good as knowing the peaks). Before anything
    finished, the largest growth seen in an active session stands in for the mean.
    """

    def __init__(self, window: int = 40, share: float = 0.5) -> None:
        if window < 1 or not share >= 0.0:
            raise ValueError("forecast: needs window >= 1 and share >= 0")
        self.share = share
        self._growths: deque[float] = deque(maxlen=window)
        self._sum = 0.0
        self._seen = 0.0

    def finished(self, growth_tokens: float) -> None:
        """A session ended that much larger than its first prompt."""
        growth_tokens = max(0.0, growth_tokens)
        if len(self._growths) == self._growths.maxlen:
            self._sum -= self._growths[0]
        self._growths.append(growth_tokens)
        self._sum += growth_tokens

    def watched(self, growth_tokens: float) -> None:
        """An active session has grown that much so far."""
        self._seen = max(self._seen, growth_tokens)

    @property
    def mean_tokens(self) -> float:
        """Mean growth of recent sessions."""
        return max(0.0, self._sum / len(self._growths)) if self._growths else self._seen

    def ahead_tokens(self) -> float:
        """Growth still to be expected of an active or held session."""
        return self.share * self.mean_tokens


@dataclass(slots=True)
class Growing:
    """One context epoch of an active session: its first prompt, and how large it is now."""

    epoch: int
    first_tokens: int
    seen_tokens: int = 0


class Projection:
    """KV tokens that the active sessions will need, against the pool.

    Remembers the first prompt of each active session (bounded by their number, give or
    take 64) and the pool's size, which does not change, so that the last known one holds.
    A session that compacts has grown as one that ends has, and starts anew.
    """

    def __init__(self, growth: GrowthForecast | None = None) -> None:
        self.growth = growth or GrowthForecast()
        self.pool_tokens = 0
        self.host_tokens = 0
        """What host memory takes besides; 0: there is none, as far as known."""
        self._growing: dict[str, Growing] = {}

    def saw(self, load: Load) -> int:
        """Take the pool's size from a sample; returns it, 0 while never known."""
        if load.kv_blocks_total:
            self.pool_tokens = load.kv_blocks_total * load.block_size
            self.host_tokens = (load.host_blocks_total or 0) * load.block_size
        return self.pool_tokens

    def admitted(self, held: HeldSession) -> None:
        """A session is admitted: its first prompt counts from now on. Resumed ones are known."""
        if not held.is_paused:
            session = held.session
            self._growing[session.session_id] = Growing(session.epoch, held.num_prompt_tokens)

    def watched(self, active: ActiveSet) -> None:
        """Learn from sessions under way; forget those that are gone."""
        for session_id, session in active.sessions.items():
            known = self._growing.get(session_id)
            if known is None or known.epoch != session.epoch:
                if known is not None and known.seen_tokens:
                    self.growth.finished(known.seen_tokens - known.first_tokens)
                known = Growing(session.epoch, session.context_tokens)
                self._growing[session_id] = known
            known.seen_tokens = session.context_tokens
            self.growth.watched(session.context_tokens - known.first_tokens)
        if len(self._growing) > 2 * len(active) + 64:
            self._growing = {k: v for k, v in self._growing.items() if k in active.sessions}

    def ended(self, session: Session) -> None:
        """A session ended: learn how much it grew."""
        known = self._growing.pop(session.session_id, None)
        if known is not None and session.context_tokens and known.epoch == session.epoch:
            self.growth.finished(session.context_tokens - known.first_tokens)

    def present_tokens(self, session: Session) -> int:
        """Context of an active session, its first prompt while that is under way."""
        known = self._growing.get(session.session_id)
        if known is None or known.epoch != session.epoch:
            return session.context_tokens
        return max(session.context_tokens, known.first_tokens)

    def held_tokens(self, held: HeldSession) -> float:
        """What admitting a session takes: its first prompt, and growth."""
        return held.num_prompt_tokens + self.growth.ahead_tokens()

    def working_set_tokens(
        self, active: ActiveSet, now: float, *, idle_weight: float = 1.0, idle_s: float = 10.0
    ) -> float:
        """Sum of :meth:`needs`."""
        needs = self.needs(active, now, idle_weight=idle_weight, idle_s=idle_s)
        return sum(tokens for _, tokens in needs)

    def needs(
        self, active: ActiveSet, now: float, *, idle_weight: float = 1.0, idle_s: float = 10.0
    ) -> Iterator[tuple[Session, float]]:
        """Projected need of each active session (tokens): context plus the growth ahead.

        Sessions that wait for a tool or a human for longer than ``idle_s`` count
        ``idle_weight`` (0..1), and less with time: some never come back, and nobody says so.
        """
        ahead = self.growth.ahead_tokens()
        for session in active.sessions.values():
            since = session.last_turn_finished_at
            tokens = self.present_tokens(session) + ahead
            if session.activity is Activity.ACTING and since is not None:
                away_s = now - since
                if away_s > idle_s:
                    tokens *= idle_weight * min(1.0, RETURNS_S / away_s)
            yield session, tokens


class TurnsAhead:
    """Continuum's eta: minus the correlation of turns done with turns ahead.

    Over all pairs ``(k, N - k)``, k = 1..N, of finished sessions of N turns; 1 before two
    different N were seen. Kept as sums in closed form: constant time and memory.
    """

    def __init__(self) -> None:
        self._count = self._sum_done = self._sum_ahead = 0.0
        self._sum_done2 = self._sum_ahead2 = self._sum_both = 0.0
        self._lengths: tuple[int, int] | None = None

    def add(self, num_turns: int) -> None:
        """A session of that many turns finished."""
        n = num_turns
        if n < 1:
            return
        low, high = self._lengths or (n, n)
        self._lengths = (min(low, n), max(high, n))
        squares = n * (n + 1) * (2 * n + 1) / 6.0
        self._count += n
        self._sum_done += n * (n + 1) / 2.0
        self._sum_ahead += n * (n - 1) / 2.0
        self._sum_done2 += squares
        self._sum_ahead2 += (n - 1) * n * (2 * n - 1) / 6.0
        self._sum_both += n * n * (n + 1) / 2.0 - squares

    @property
    def eta(self) -> float:
        """1: every turn done is one less to come (same lengths); below: memoryless."""
        if self._lengths is None or self._lengths[0] == self._lengths[1]:
            return 1.0
        n = self._count
        done, ahead = self._sum_done / n, self._sum_ahead / n
        covariance = self._sum_both / n - done * ahead
        spread = (self._sum_done2 / n - done**2) * (self._sum_ahead2 / n - ahead**2)
        if spread <= 0.0:
            return 1.0
        return -covariance / math.sqrt(spread)
