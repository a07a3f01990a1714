# SPDX-License-Identifier: Apache-2.0
"""What a session needs at the very least: its path alone, and the work it brings to each machine.

Every quantity is a lower bound over all schedules, clairvoyant ones included:

* *Cached*: of a prompt, at most what the session's own earlier contexts left, or the head
  up to the first content that no other session has (others may have computed that).
* *Alone*: a step with a batch lasts at least as long as with one sequence of it, since a
  step's cost grows with its batch. A prefill of T tokens takes at least ceil(T / chunk)
  steps; its parts are added up piecewise, as ``touched`` is subadditive.
* *GPU*: a step costs ``base + linear + ...`` of :mod:`mars.core.cost` and ``linear >= theta x
  read + (1 - theta) x per_token x T`` for any theta in 0..1. Per-token terms belong to their
  sequence. The rest, ``G(B) = base + theta x read(B)`` of B sequences, is concave; a sequence
  whose own KV fills the share p of the pool is charged ``p x G(1/p)``. Own KV of a batch
  fits in the pool together (blocks of content that only one session has are shared by nobody),
  the charge is concave and grows with p, hence by Jensen's inequality the charges of a
  batch sum to ``G(B)`` at most.
* *Memory*: own KV over the pool, times how long it stays: the pool is one machine of rate 1.
  Between two turns the KV that the next one finds must be kept (memory) or be computed again
  (GPU and memory). What is best for a part of it is concave in that part, so all or nothing
  is best; the cheaper of the two is charged. This is without a host tier.
* *CPU*: CPU seconds over cores; a tool takes at least its recorded time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mars.bench.ideal import cached_tokens
from mars.core.cost import CostModel
from mars.traces.content import Layout, Segment, layout
from mars.traces.schema import TraceSession, TraceTurn


@dataclass(frozen=True, slots=True)
class Box:
    """The machine, as the bound sees it.

    ``pool_tokens`` fit in the KV pool, ``chunk_tokens`` in one step.
    """

    cost: CostModel
    num_cores: int
    pool_tokens: int
    block_size: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Which relaxation: ``theta`` divides the linear layers, ``memory`` (0..1) is for the pool."""

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
    spread = Counter(content for one in layouts for content in _contents(one))
    return [
        _Walk(session, one, spread, box, mixes).demand()
        for session, one in zip(sessions, layouts, strict=True)
        if all(t.prompt_tokens + t.output_tokens <= box.pool_tokens for t in session.turns)
    ]


def _contents(one: Layout) -> set[str]:
    found = {segment.content_id for prompt in one.prompts for segment in prompt}
    return found | {reply.content_id for reply in one.replies}


def _common_head(prompt: Iterable[Segment], spread: Counter[str]) -> int:
    """Tokens before the first content that only one session has."""
    total = 0
    for segment in prompt:
        if spread[segment.content_id] < 2:
            break
        total += segment.count
    return total


class _Walk:
    """Goes through one session from its arrival; ``head_s`` is the time alone so far."""

    def __init__(
        self,
        session: TraceSession,
        contents: Layout,
        spread: Counter[str],
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
            common = _common_head(prompt, self.spread)
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
        works = [self._prefill_s(m, num_new, cached, common) for m in self.mixes]
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
    def _share(self, theta: float, own_tokens: float) -> float:
        """A sequence's part of what a step costs whoever is in it (seconds)."""
        p, cost = own_tokens / self.box.pool_tokens, self.box.cost
        if p <= 0.0:
            return 0.0
        experts_s = cost.experts_s
        if experts_s:
            experts_s *= -math.expm1(math.log(cost.expert_miss) / p) if cost.expert_miss else 1.0
        return p * (cost.base_s + theta * (cost.weights_s + experts_s))

    def _prefill_s(self, mix: Mix, num_new: int, cached: int, common: int) -> float:
        cost, own = self.box.cost, max(0, cached - common)
        end = cached + num_new
        num_steps = -(-num_new // self.box.chunk_tokens)
        gpu_s = (num_steps - 1) * self._share(mix.theta, own)
        gpu_s += self._share(mix.theta, max(0, end - common)) + num_steps * cost.per_seq_s
        gpu_s += (1.0 - mix.theta) * cost.per_token_s * num_new
        gpu_s += max(cost.per_pair_s * _pairs(cached, num_new), cost.per_kv_token_s * end)
        return (1.0 - mix.memory) * gpu_s + mix.memory * self._fill_s(num_new, cached, own)

    def _fill_s(self, num_new: int, cached: int, own: int) -> float:
        """Pool seconds of a prefill: own KV grows token by token while it is computed."""
        cost = self.box.cost
        held = num_new * (own + 0.5 * num_new)
        fill_s = cost.per_token_s * held + cost.per_pair_s * cached * held
        return fill_s / self.box.pool_tokens

    def _decode_s(self, mix: Mix, num: int, first: int, final: int, common: int) -> float:
        cost = self.box.cost
        mean = 0.5 * (first + final) + 1.0
        # The charge is concave in the context: the chord's mean is below that of the tokens.
        low, high = max(0, first - common + 1), max(0, final - common + 1)
        shared_s = 0.5 * (self._share(mix.theta, low) + self._share(mix.theta, high))
        gpu_s = shared_s + cost.per_seq_s + (1.0 - mix.theta) * cost.per_token_s
        gpu_s += max(cost.per_kv_token_s, cost.per_pair_s) * mean
        pool_s = 0.5 * (low + high) / self.box.pool_tokens * cost.decode_s(first)
        return num * ((1.0 - mix.memory) * gpu_s + mix.memory * pool_s)

    def _keep_s(self, mix: Mix, kept: int, common: int, gap_s: float) -> float:
        """Keeping KV over a gap, or computing it again: the cheaper of the two."""
        cost = self.box.cost
        keep_s = mix.memory * kept * gap_s / self.box.pool_tokens
        again_s = (1.0 - mix.theta) * cost.per_token_s * kept
        again_s += cost.per_pair_s * _pairs(common, kept)
        again_s = (1.0 - mix.memory) * again_s + mix.memory * self._fill_s(kept, common, 0)
        return min(keep_s, again_s)


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
