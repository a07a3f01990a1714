# SPDX-License-Identifier: Apache-2.0
"""What a kept KV prefix is worth, and what it costs."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from itertools import pairwise
from typing import Protocol, runtime_checkable

from mars.core.model import Load, Session

ROUNDING_S = 1.0e-6
"""More than rounding moves a time; less than a step lasts."""


class PrefillCost(Protocol):
    """Prices prefill; ``mars.core.cost.CostModel`` does."""

    def prefill_s(self, num_tokens: int, context_tokens: int = 0) -> float:
        """Seconds to compute ``num_tokens`` after ``context_tokens`` present ones."""
        ...


@runtime_checkable
class ReloadCost(PrefillCost, Protocol):
    """Prices reloads as well; ``mars.core.reload.TieredCost`` does."""

    def reload_s(self, num_tokens: int) -> float:
        """Seconds to copy so many tokens' KV from host memory."""
        ...


class FlatCost:
    """So many seconds per token, whatever the context.

    The default 2e-4 s is that of the MARS preview for InferCept's forward time.
    """

    def __init__(self, s_per_token: float = 2.0e-4) -> None:
        self.s_per_token = s_per_token

    def prefill_s(self, num_tokens: int, context_tokens: int = 0) -> float:
        """``num_tokens`` times the price."""
        return num_tokens * self.s_per_token


class PriceTable:
    """Prefill seconds from a table of the cumulative price, filled as needed.

    ``F(n)``: price of a prompt of ``n`` tokens, exact at multiples of ``STEP_TOKENS`` and
    linear in between; ``n`` tokens after ``c`` present ones cost ``F(c + n) - F(c)``. For
    orders and values, which ask often and need no more than that.
    """

    STEP_TOKENS = 4096
    MAX_TOKENS = 4_194_304
    MAX_PROMPTS = 1024
    """So many prices of whole prompts are remembered: a session's is asked for in every step."""

    def __init__(self, cost: PrefillCost) -> None:
        self._cost = cost
        self._reload = cost if isinstance(cost, ReloadCost) else None
        self._at: dict[int, float] = {0: 0.0}
        self._prompts: dict[int, float] = {}

    def prefill_s(self, num_tokens: int, context_tokens: int = 0) -> float:
        """Seconds to compute ``num_tokens`` after ``context_tokens`` present ones."""
        if num_tokens <= 0:
            return 0.0
        if context_tokens > 0:
            return self._until_s(context_tokens + num_tokens) - self._until_s(context_tokens)
        known = self._prompts.get(num_tokens)
        if known is None:
            if len(self._prompts) >= self.MAX_PROMPTS:
                self._prompts.clear()
            known = self._prompts[num_tokens] = self._until_s(num_tokens)
        return known

    @property
    def has_tier(self) -> bool:
        """Whether reloads have a price: there is host memory behind the GPU's."""
        return self._reload is not None

    def reload_s(self, num_tokens: int) -> float:
        """Seconds to copy so many tokens' KV from host memory; infinite where there is none."""
        return math.inf if self._reload is None else self._reload.reload_s(num_tokens)

    def return_s(self, num_tokens: int, cached_tokens: int, host_tokens: int) -> float:
        """Seconds until a context is whole again: copied as far as host memory has it, the rest
        computed. vLLM loads all that it finds, and no known link is slower than computing.

        Args:
            num_tokens: the whole context.
            cached_tokens: the prefix that the GPU has.
            host_tokens: the prefix that host memory has; 0 without a tier.
        """
        found = min(host_tokens, num_tokens)
        if self._reload is None or found <= cached_tokens:
            return self.prefill_s(num_tokens - cached_tokens, cached_tokens)
        return self._reload.reload_s(found - cached_tokens) + self.prefill_s(
            num_tokens - found, found
        )

    def _until_s(self, num_tokens: int) -> float:
        index, rest = divmod(min(num_tokens, self.MAX_TOKENS), self.STEP_TOKENS)
        low = self._known_s(index)
        if not rest:
            return low
        return low + (self._known_s(index + 1) - low) * rest / self.STEP_TOKENS

    def _known_s(self, index: int) -> float:
        known = self._at.get(index)
        if known is None:
            known = self._at[index] = self._cost.prefill_s(index * self.STEP_TOKENS)
        return known


def idle_s(session: Session, now: float) -> float:
    """Seconds since the session's last turn finished; 0 before its first has."""
    since = session.last_turn_finished_at
    return 0.0 if since is None else max(0.0, now - since)


def kept_blocks(session: Session, load: Load) -> int:
    """KV blocks that the session's cached prefix occupies, at least 1."""
    return max(1, session.cached_tokens // max(1, load.block_size))


def pool_share(session: Session, load: Load) -> float:
    """Share of the pool that the prefix occupies, 0..1; an unknown pool counts as full."""
    if not load.kv_blocks_total:
        return 1.0
    return min(1.0, kept_blocks(session, load) / load.kv_blocks_total)


def return_probability(elapsed_s: float, horizon_s: float, scale_s: float, shape: float) -> float:
    """P(a tool that ran ``elapsed_s`` ends within ``horizon_s`` more), log-logistic.

    ``S(t) = 1 / (1 + (t / scale)^shape)``, so ``P = 1 - S(elapsed + horizon) / S(elapsed)``:
    heavy-tailed, as real tool times are (TRACES.md section 2.4: the top 5% of calls take 80%
    of the time). Falls with elapsed time past the mode, rises with the horizon.
    """
    if horizon_s <= 0.0:
        return 0.0
    elapsed_s = min(max(0.0, elapsed_s), 1.0e12)
    before = 1.0 + (elapsed_s / scale_s) ** shape
    after = 1.0 + ((elapsed_s + horizon_s) / scale_s) ** shape
    return 1.0 - before / after


def value_per_block_s(
    recompute_s: float, probability: float, num_blocks: int, hold_s: float
) -> float:
    """Worth of keeping: ``P(return in time) x recompute seconds / (blocks x hold seconds)``."""
    return probability * recompute_s / (max(1, num_blocks) * max(1.0e-3, hold_s))


class TimeToLive:
    """Continuum's best time to live over the empirical distribution of return times.

    ``tau* = argmax over tau in {0} u S of P(tau) x benefit - tau`` with ``P`` the empirical
    CDF of the last ``window`` samples ``S``. The best tau lies on the upper concave hull of
    the points ``(sample, P(sample))``, so one query is a binary search by slope; the hull is
    rebuilt after every ``window / 16`` samples. Constant memory, amortised O(log n) a query
    (the published formula read literally is quadratic in the samples).
    """

    def __init__(self, window: int = 512) -> None:
        self._window = window
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._taus: list[float] = []
        self._slopes: list[float] = []
        self._num_new = 0
        self.num_seen = 0
        self._sum_s = 0.0

    def add(self, interval_s: float) -> None:
        """One more return time; the oldest beyond the window is forgotten."""
        interval_s = max(0.0, interval_s)
        if len(self._recent) == self._window:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum_s -= oldest
        self._recent.append(interval_s)
        insort(self._sorted, interval_s)
        self._sum_s += interval_s
        self.num_seen += 1
        self._num_new += 1

    @property
    def mean_s(self) -> float:
        """Mean of the samples in the window, 0 when there is none."""
        return self._sum_s / len(self._recent) if self._recent else 0.0

    def best_s(self, benefit_s: float) -> float:
        """The time to live that is worth most when a warm return saves ``benefit_s``."""
        if not self._recent or benefit_s <= 0.0:
            return 0.0
        if not self._taus or self._num_new * 16 >= min(len(self._sorted), self._window):
            self._rebuild()
        # Go right along the hull while the gain in P x benefit exceeds the gain in tau.
        index = bisect_left(self._slopes, -1.0 / benefit_s)
        return self._taus[index]

    def _rebuild(self) -> None:
        """Upper hull from (0, 0); ``_slopes`` holds minus dP/dtau after each hull point."""
        count = len(self._sorted)
        hull: list[tuple[float, float]] = [(0.0, 0.0)]
        for i, tau in enumerate(self._sorted, start=1):
            point = (tau, i / count)
            while hull and hull[-1][0] >= tau:
                hull.pop()
            while len(hull) >= 2 and _is_below(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        self._taus = [tau for tau, _ in hull]
        self._slopes = [-(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(hull)]
        self._num_new = 0


def _is_below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether ``b`` lies on or below the line from ``a`` to ``c``."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
