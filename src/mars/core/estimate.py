# SPDX-License-Identifier: Apache-2.0
"""Bounded online estimate of how long a tool call takes, learned per tool class.

A class is ``tool`` or ``tool:command`` (``bash:pytest``). Each class keeps a histogram
of log duration. Estimates blend ``tool:command``, ``tool``, all calls, and a prior, each
level counting as ``PRIOR_CALLS`` calls of the level below it, so that a class seen once
is not believed as much as one seen fifty times. Every answer is O(1) between
observations; memory is O(``max_classes``), whatever is observed.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import OrderedDict

BINS_PER_OCTAVE = 4
_FIRST_EDGE_LOG2 = -10
_NUM_BINS = 24 * BINS_PER_OCTAVE
_EDGES_S = [2.0 ** (_FIRST_EDGE_LOG2 + i / BINS_PER_OCTAVE) for i in range(_NUM_BINS + 1)]
"""1 ms to 4.5 h; the last bin is open above and falls as a Pareto tail of index 2."""
_LAST = _NUM_BINS - 1
_LOG_WIDTH = math.log(2.0) / BINS_PER_OCTAVE

PRIOR_CALLS = 1.0
MAX_WEIGHT = 256.0
"""Calls a class remembers: beyond that all weights are halved, so old ones fade."""

PRIOR_SURVIVAL = (
    (0.001, 1.0),
    (0.025, 0.9),
    (0.122, 0.5),
    (2.3, 0.1),
    (73.0, 0.01),
    (300.0, 1e-3),
    (3600.0, 1e-5),
    (16384.0, 1e-7),
)
"""(seconds, share of calls that take longer): the 10/50/90/99 percentiles of 1,310 tool
calls of coding agents (AgentCgroup, Haiku 4.5 batch set), tail to its maximum by eye."""


def _bin(seconds: float) -> int:
    if seconds <= _EDGES_S[0]:
        return 0
    position = (math.log2(seconds) - _FIRST_EDGE_LOG2) * BINS_PER_OCTAVE
    return min(_LAST, int(position))


class _Histogram:
    """Weighted log-spaced histogram, log-uniform inside a bin, with cached tail sums."""

    __slots__ = ("_is_stale", "_mass", "_seconds", "_weights", "total")

    def __init__(self) -> None:
        self._weights = [0.0] * _NUM_BINS
        self.total = 0.0
        self._mass = [0.0] * (_NUM_BINS + 1)
        self._seconds = [0.0] * (_NUM_BINS + 1)
        self._is_stale = False

    def add(self, seconds: float, weight: float = 1.0) -> None:
        self._weights[_bin(seconds)] += weight
        self.total += weight
        if self.total > MAX_WEIGHT:
            self._weights = [w / 2 for w in self._weights]
            self.total = math.fsum(self._weights)
        self._is_stale = True

    def tail(self, after_s: float) -> tuple[float, float]:
        """Weight of the calls longer than ``after_s``, and the sum of their seconds."""
        if self._is_stale:
            self._sum_tails()
        if after_s <= _EDGES_S[0]:
            return self._mass[0], self._seconds[0]
        i = _bin(after_s)
        mass, seconds = _part_of_bin(i, max(after_s, _EDGES_S[i]))
        weight = self._weights[i]
        return weight * mass + self._mass[i + 1], weight * seconds + self._seconds[i + 1]

    def _sum_tails(self) -> None:
        weights = self._weights[::-1]
        seconds = map(operator.mul, weights, _SECONDS_OF_BIN)
        self._mass = [0.0, *itertools.accumulate(weights)][::-1]
        self._seconds = [0.0, *itertools.accumulate(seconds)][::-1]
        self._is_stale = False


def _part_of_bin(i: int, after_s: float) -> tuple[float, float]:
    """Of a call in bin ``i``: P(longer than ``after_s``), and E[seconds; longer]."""
    if i == _LAST:
        edge = _EDGES_S[_LAST]
        return (edge / after_s) ** 2, 2.0 * edge * edge / after_s
    end = _EDGES_S[i + 1]
    if after_s >= end:
        return 0.0, 0.0
    return math.log(end / after_s) / _LOG_WIDTH, (end - after_s) / _LOG_WIDTH


_SECONDS_OF_BIN = [_part_of_bin(i, _EDGES_S[i])[1] for i in reversed(range(_NUM_BINS))]
"""E[seconds; call in the bin], the last bin first."""


def _prior() -> _Histogram:
    prior = _Histogram()
    for (start, above), (end, below) in itertools.pairwise(PRIOR_SURVIVAL):
        first, last = _bin(start * 1.001), _bin(end * 0.999)
        for i in range(first, last + 1):
            prior.add(_EDGES_S[i] * 1.01, (above - below) / (last - first + 1))
    prior.add(_EDGES_S[_LAST], PRIOR_SURVIVAL[-1][1])
    return prior


class DurationEstimator:
    """Learns tool durations; answers questions about a call that has run for a while.

    Args:
        max_classes: Most classes remembered; the one not observed for longest goes.
            256: the public coding traces have at most 60 commands a session and share
            most of them.
    """

    def __init__(self, max_classes: int = 256) -> None:
        if max_classes < 1:
            raise ValueError(f"max_classes must be at least 1, not {max_classes}")
        self._max_classes = max_classes
        self._classes: OrderedDict[str, _Histogram] = OrderedDict()
        self._all = _Histogram()
        self._prior = _prior()

    def __len__(self) -> int:
        """Number of classes remembered."""
        return len(self._classes)

    def weight(self, tool_name: str) -> float:
        """Calls of just this class that count (at most :data:`MAX_WEIGHT`); 0: unknown."""
        histogram = self._classes.get(tool_name)
        return histogram.total if histogram else 0.0

    def observe(self, tool_name: str, seconds: float) -> None:
        """A call of this class took ``seconds``; not-a-number and infinity are ignored."""
        if not math.isfinite(seconds):
            return
        self._all.add(seconds)
        for name in _levels(tool_name):
            histogram = self._classes.get(name)
            if histogram is None:
                histogram = self._classes[name] = _Histogram()
                if len(self._classes) > self._max_classes:
                    self._classes.popitem(last=False)
            self._classes.move_to_end(name)
            histogram.add(seconds)

    def expected(self, tool_name: str, elapsed_s: float = 0.0) -> float:
        """Mean seconds a call still takes, given that it has run for ``elapsed_s``.

        The whole duration where ``elapsed_s`` is 0. Tool times are heavy-tailed: the
        longer a call has run, the longer it usually still takes.
        """
        elapsed_s = max(0.0, elapsed_s)
        mass, seconds = self._tail(tool_name, elapsed_s)
        return max(0.0, seconds / mass - elapsed_s)

    def survival(self, tool_name: str, elapsed_s: float, horizon_s: float) -> float:
        """P(the call returns within ``horizon_s`` | it has run for ``elapsed_s``), 0..1."""
        elapsed_s = max(0.0, elapsed_s)
        if horizon_s <= 0.0:
            return 0.0
        mass, _ = self._tail(tool_name, elapsed_s)
        mass_later, _ = self._tail(tool_name, elapsed_s + horizon_s)
        return min(1.0, max(0.0, 1.0 - mass_later / mass))

    def _tail(self, tool_name: str, after_s: float) -> tuple[float, float]:
        """P(longer than ``after_s``) and E[seconds; longer], blended over the levels."""
        mass, seconds = self._prior.tail(after_s)
        mass, seconds = mass / self._prior.total, seconds / self._prior.total
        levels = [self._classes.get(name) for name in _levels(tool_name)]
        for histogram in (self._all, *levels):
            if histogram is None:
                continue
            own_mass, own_seconds = histogram.tail(after_s)
            total = histogram.total + PRIOR_CALLS
            mass = (own_mass + PRIOR_CALLS * mass) / total
            seconds = (own_seconds + PRIOR_CALLS * seconds) / total
        return mass, seconds


def _levels(tool_name: str) -> tuple[str, ...]:
    """``bash:pytest`` -> (``bash``, ``bash:pytest``); least specific first."""
    tool, separator, _ = tool_name.partition(":")
    return (tool, tool_name) if separator else (tool_name,)
