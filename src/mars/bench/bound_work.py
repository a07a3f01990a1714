# SPDX-License-Identifier: Apache-2.0
"""What a session needs at the very least: its path alone, and the work it brings to each machine.

Every quantity is a lower bound over all schedules, clairvoyant ones included:

* *Cached*: of a prompt, at most what the session's own earlier contexts left, or the head
  up to the first content that no other session has (others may have computed that).
* *Alone*: a step with a batch lasts at least as long as with one sequence of it, since a
  step's cost grows with its batch. A prefill of T tokens takes at least ceil(T / chunk)
  steps; its parts are added up piecewise, as ``touched`` is subadditive.
* *GPU and memory*: a step lasts ``s >= G(B) + sum of c`` for B sequences, since ``linear >= theta
  x read + (1 - theta) x per_token x T`` for any theta in 0..1: ``G(B) = base + theta x read(B)``
  is concave, and ``c >= floor + kv x p`` is a sequence's own, p the share of the pool that its
  own KV fills (blocks of content that only one session has are shared by nobody). KV that is
  kept for later fills K of the pool, so in any step ``P = sum of p <= 1 - K``. For any lambda in
  0..1 ``(1 - lambda) s + lambda s (P + K) <= s``: keeping is charged lambda x share x time, and
  ``s (1 - lambda + lambda P)`` is divided among the sequences. Each is charged
  ``gamma (p G(1/p) + floor + kv p)``, and 1 - lambda of what its c has beyond. Here gamma
  (:func:`common_rate`) is the largest with ``gamma (p G(1/p) + floor + kv p) <= (G(x)/x + floor
  + kv p) (1 - lambda + lambda p x)`` for all p and ``x <= 1/p``. The left side is concave in p,
  so by Jensen's inequality the charges of a batch sum to what is divided, at most. With
  ``mu = gamma - 1 + lambda``, ``mu x p x c`` more is charged to a prefill, since p <= 1 and
  mu <= lambda.
* *Between two turns* the KV that the next one finds must be kept, or be computed again. What is
  best for a part of it is concave in that part, so all or nothing is best; the cheaper of
  the two is charged. This is without a host tier.
* *CPU*: CPU seconds over cores; a tool takes at least its recorded time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter

import numpy as np

from mars.bench.ideal import cached_tokens
from mars.core.cost import CostModel
from mars.traces.content import Layout, Segment, layout
from mars.traces.schema import TraceSession, TraceTurn

_CELL, _FIRST_CELL = 1.01, 1e-4
"""Grid of shares of the pool on which charges are checked: ratio of neighbours, and the first."""


@dataclass(frozen=True, slots=True)
class Box:
    """The machine, as the bound sees it.

    ``pool_tokens`` fit in the KV pool, ``chunk_tokens`` and ``num_seqs`` sequences in one step.
    """

    cost: CostModel
    num_cores: int
    pool_tokens: int
    block_size: int
    chunk_tokens: int
    num_seqs: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Which relaxation: ``theta`` divides the linear layers, ``memory`` is lambda."""

    theta: float
    memory: float


@dataclass(slots=True)
class Need:
    """One stretch of a session, in seconds alone on the machine.

    Not before ``head_s`` after the arrival; once a part of it is done, ``tail_s`` remain on
    average over its parts. ``work_s`` is what it brings to the relaxed machine, by ``Mix``.
    """

    head_s: float
    tail_s: float
    work_s: tuple[float, ...]
    cpu_s: float = 0.0


@dataclass(slots=True)
class Demand:
    """One session: its needs, and how long it takes alone at the very least."""

    arrival_s: float
    alone_s: float
    needs: list[Need]


def demands(sessions: Sequence[TraceSession], box: Box, mixes: Sequence[Mix]) -> list[Demand]:
    """What each session needs; those that the pool can never hold are left out."""
    layouts = [layout(session) for session in sessions]
    spread = Spread(layouts)
    return [
        _Walk(session, one, spread, box, mixes).demand()
        for session, one in zip(sessions, layouts, strict=True)
        if all(t.prompt_tokens + t.output_tokens <= box.pool_tokens for t in session.turns)
    ]


class Spread:
    """Which positions of which contents two or more sessions have."""

    def __init__(self, layouts: Iterable[Layout]) -> None:
        edges: dict[str, list[tuple[int, int]]] = {}
        for one in layouts:
            for content_id, ranges in _ranges(one).items():
                found = edges.setdefault(content_id, [])
                found += [(start, 1) for start, _ in ranges]
                found += [(stop, -1) for _, stop in ranges]
        self._common = {content_id: _common_ranges(found) for content_id, found in edges.items()}

    def head_tokens(self, prompt: Iterable[Segment]) -> int:
        """Tokens before the first that only one session has."""
        total = 0
        for content_id, start, count in prompt:
            ranges = self._common[content_id]
            place = bisect_right(ranges, start, key=itemgetter(0)) - 1
            stop = ranges[place][1] if place >= 0 else start
            total += max(0, min(count, stop - start))
            if stop < start + count:
                break
        return total


def _ranges(one: Layout) -> dict[str, list[tuple[int, int]]]:
    """What a session has of each content: disjoint (start, stop), each position once."""
    found: dict[str, list[tuple[int, int]]] = {}
    for segment in {*chain.from_iterable(one.prompts), *one.replies}:
        place = (segment.start, segment.start + segment.count)
        found.setdefault(segment.content_id, []).append(place)
    return {content_id: _union(places) for content_id, places in found.items()}


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _common_ranges(edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where two sessions or more are: disjoint (start, stop), ascending and never adjoining."""
    common: list[tuple[int, int]] = []
    num, since = 0, 0
    for position, step in sorted(edges, key=lambda edge: (edge[0], -edge[1])):
        if num < 2 <= num + step:
            since = position
        elif num + step < 2 <= num and position > since:
            common.append((since, position))
        num += step
    return _union(common)


class _Walk:
    """Goes through one session from its arrival; ``head_s`` is the time alone so far."""

    def __init__(
        self,
        session: TraceSession,
        contents: Layout,
        spread: Spread,
        box: Box,
        mixes: Sequence[Mix],
    ) -> None:
        self.session = session
        self.contents = contents
        self.spread = spread
        self.box = box
        self.mixes = mixes
        self.head_s = 0.0
        self.needs: list[Need] = []

    def demand(self) -> Demand:
        """Walk all turns; then tails are known."""
        past: list[Sequence[Segment]] = []
        gap_s, last = 0.0, len(self.session.turns) - 1
        for index, turn in enumerate(self.session.turns):
            prompt = self.contents.prompts[index]
            common = self.spread.head_tokens(prompt)
            own = cached_tokens(prompt, past, self.box.block_size)
            self._turn(turn, own, common, gap_s)
            past.append([*prompt, self.contents.replies[index]])
            gap_s = self._tools(turn) + (turn.gap_s if index < last else 0.0)
            self.head_s += turn.gap_s if index < last else 0.0
        for need in self.needs:
            need.tail_s += self.head_s
        return Demand(self.session.arrival_s, self.head_s, self.needs)

    def _turn(self, turn: TraceTurn, own: int, common: int, gap_s: float) -> None:
        box, cost = self.box, self.box.cost
        most = (turn.prompt_tokens - 1) // box.block_size * box.block_size
        cached = min(max(own, common), most)
        num_new = turn.prompt_tokens - cached
        started_s = self.head_s
        kept = max(0, own - common)
        self.head_s += prefill_floor_s(cost, num_new, cached, box.chunk_tokens)
        if kept and gap_s:
            self._add(
                started_s - gap_s, 0.0, [self._keep_s(m, kept, common, gap_s) for m in self.mixes]
            )
        # What is computed again shares the reading of the context with the turn's own prefill.
        is_kept = bool(kept and gap_s)
        works = [self._prefill_s(m, num_new, cached, common, is_kept=is_kept) for m in self.mixes]
        self._add(started_s, 0.0, works)
        num_decodes = max(0, turn.output_tokens - 1)
        if num_decodes:
            first, final = turn.prompt_tokens, turn.prompt_tokens + num_decodes - 1
            works = [self._decode_s(m, num_decodes, first, final, common) for m in self.mixes]
            step_s = cost.decode_s(first)
            begun_s = self.head_s
            self.head_s += 0.5 * num_decodes * (step_s + cost.decode_s(final))
            # Later tokens weigh more and leave less; charges are concave, so at most in this ratio.
            share = max(1, first - common + 1) / max(1, final - common + 1)
            self._add(begun_s, share * 0.5 * (num_decodes - 1) * step_s, works)

    def _tools(self, turn: TraceTurn) -> float:
        """Add the turn's tools; their seconds."""
        begun_s = self.head_s
        for tool in turn.tools:
            alone_s = max(tool.duration_s, tool.cpu_s / self.box.num_cores)
            started_s = self.head_s
            self.head_s += alone_s
            if tool.cpu_s:
                none = (0.0,) * len(self.mixes)
                # Its CPU seconds are spread evenly: half of it remains after the mean one.
                tail_s = 0.5 * alone_s - self.head_s
                self.needs.append(Need(started_s, tail_s, none, tool.cpu_s / self.box.num_cores))
        return self.head_s - begun_s

    def _add(self, begun_s: float, left_s: float, works: Sequence[float]) -> None:
        """A need from ``begun_s`` until now, on average done ``left_s`` before."""
        self.needs.append(Need(max(0.0, begun_s), left_s - self.head_s, tuple(works)))

    # --- work, by machine ----------------------------------------------------------------
    def _prefill_s(
        self, mix: Mix, num_new: int, cached: int, common: int, *, is_kept: bool
    ) -> float:
        cost, own = self.box.cost, max(0, cached - common)
        end = cached + num_new
        num_steps = -(-num_new // self.box.chunk_tokens)
        shared_s = (num_steps - 1) * self._share_s(mix, own)
        shared_s += self._share_s(mix, max(0, end - common))
        own_s = num_steps * cost.per_seq_s + (1.0 - mix.theta) * cost.per_token_s * num_new
        read_s = 0.0 if is_kept else cost.per_kv_token_s * end
        own_s += max(cost.per_pair_s * _pairs(cached, num_new), read_s)
        rate = common_rate(self.box, mix)
        fill_s = (rate - 1.0 + mix.memory) * self._fill_s(mix, num_new, cached, own)
        return rate * shared_s + (1.0 - mix.memory) * own_s + fill_s

    def _share_s(self, mix: Mix, own_tokens: float) -> float:
        """A sequence's part of what a step costs whoever is in it: ``p G(1/p)``."""
        return shared_s(self.box.cost, mix.theta, own_tokens / self.box.pool_tokens)

    def _fill_s(self, mix: Mix, num_new: int, cached: int, own: int) -> float:
        """Pool seconds of a prefill: own KV grows token by token while it is computed."""
        cost = self.box.cost
        held = num_new * (own + 0.5 * num_new)
        per_token_s = (1.0 - mix.theta) * cost.per_token_s + cost.per_pair_s * cached
        return per_token_s * held / self.box.pool_tokens

    def _decode_s(self, mix: Mix, num: int, first: int, final: int, common: int) -> float:
        cost = self.box.cost
        mean = 0.5 * (first + final) + 1.0
        # The charge is concave in the context: the chord's mean is below that of the tokens.
        low, high = max(0, first - common + 1), max(0, final - common + 1)
        shared = 0.5 * (self._share_s(mix, low) + self._share_s(mix, high))
        read_s = cost.per_kv_token_s * 0.5 * (low + high)
        rest_s = max(0.0, max(cost.per_kv_token_s, cost.per_pair_s) * mean - read_s)
        charge_s = common_rate(self.box, mix) * (shared + _floor_s(cost, mix.theta) + read_s)
        return num * (charge_s + (1.0 - mix.memory) * rest_s)

    def _keep_s(self, mix: Mix, kept: int, common: int, gap_s: float) -> float:
        """Keeping KV over a gap, or computing it again: the cheaper of the two."""
        cost = self.box.cost
        keep_s = mix.memory * kept * gap_s / self.box.pool_tokens
        again_s = (1.0 - mix.theta) * cost.per_token_s * kept
        again_s += cost.per_pair_s * _pairs(common, kept)
        more = common_rate(self.box, mix) - 1.0 + mix.memory
        again_s = (1.0 - mix.memory) * again_s + more * self._fill_s(mix, kept, common, 0)
        return min(keep_s, again_s)


def shared_s(cost: CostModel, theta: float, share: float) -> float:
    """``p G(1/p)`` of a sequence that fills the share p (0..1) of the pool, in seconds."""
    return share * _batch_s(cost, theta, 1.0 / share) if share > 0.0 else 0.0


def _batch_s(cost: CostModel, theta: float, num_seqs: float) -> float:
    """``G``: what a step costs at least for so many sequences, beside what is their own."""
    experts_s = cost.experts_s
    if experts_s:
        experts_s *= 1.0 - cost.expert_miss**num_seqs
    return cost.base_s + theta * (cost.weights_s + experts_s)


def _floor_s(cost: CostModel, theta: float) -> float:
    """What the least of sequences costs by itself, beside reading its KV."""
    return cost.per_seq_s + (1.0 - theta) * cost.per_token_s


@lru_cache(maxsize=256)
def common_rate(box: Box, mix: Mix) -> float:
    """``gamma`` of the charges above, from below.

    Both sides of its inequality grow with p. So in each cell of a grid the left side at the
    upper end is held against the right side at the lower end, where also more x are allowed.
    """
    cost, least = box.cost, 1.0
    if not mix.memory:
        return 1.0
    floor_s, kv_s = _floor_s(cost, mix.theta), cost.per_kv_token_s * box.pool_tokens
    x = np.arange(1, box.num_seqs + 1, dtype=np.float64)
    each_s = np.array([_batch_s(cost, mix.theta, n) / n for n in x])
    low = 0.0
    while low < 1.0:
        high = min(1.0, max(_FIRST_CELL, low * _CELL))
        num = box.num_seqs if low <= 0.0 else min(box.num_seqs, int(1.0 / low + 1e-9))
        right = each_s[:num] + (floor_s + kv_s * low)
        right *= 1.0 - mix.memory + mix.memory * low * x[:num]
        left = shared_s(cost, mix.theta, high) + floor_s + kv_s * high
        least = min(least, float(right.min()) / left)
        low = high
    return max(least, 1.0 - mix.memory)


def _pairs(computed: float, num_new: float) -> float:
    return num_new * (computed + 0.5 * num_new)


def prefill_floor_s(cost: CostModel, num_new: int, computed: int, chunk_tokens: int) -> float:
    """Least seconds to prefill ``num_new`` tokens after ``computed``, however it is cut.

    Args:
        cost: step times.
        num_new: tokens to compute, at least 1.
        computed: tokens before them.
        chunk_tokens: most of one step.
    """
    num_steps = -(-num_new // chunk_tokens)
    read_s = num_steps * cost.weights_s + cost.experts_s * (1.0 - cost.expert_miss**num_new)
    linear_s = max(read_s, cost.per_token_s * num_new)
    end = computed + num_new
    attention_s = max(cost.per_pair_s * _pairs(computed, num_new), cost.per_kv_token_s * end)
    return num_steps * (cost.base_s + cost.per_seq_s) + linear_s + attention_s
