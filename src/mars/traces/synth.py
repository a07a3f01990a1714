# SPDX-License-Identifier: Apache-2.0
"""Synthetic sessions from the fitted distributions, as many as wanted, the same for a seed.

A session draws its number of turns, its first prompt, and per turn what the prompt grows by and
how long the reply is; the tool by the regime's mix, its duration by class. Its numbers depend on
(seed, regime, index) only: the first ten of a hundred sessions are those of ten.

How close this comes to the recordings is :func:`mars.traces.describe.compare`; the tests hold the
distance to the public traces below a bound per statistic.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mars.traces.arrivals import arrival_times
from mars.traces.errors import TraceError
from mars.traces.params import Mixture, draw_mixture, draw_quantiles
from mars.traces.regimes import REGIMES, Regime, regime
from mars.traces.schema import TraceSession, TraceTool, TraceTurn
from mars.traces.toolcost import fill_in

MAX_PROMPT_TOKENS = 160_000
COMPACTION_SHARE = (0.85, 1.0)
"""Where clients compact by themselves: in the kv-cache-tester sessions mostly between 139,000 and
160,000 tokens. Drawn per session."""
MIN_OUTPUT_TOKENS = 4
LONG_FIRST_PROMPT: Mixture = ((1.0, 48_000.0, 0.6),)
"""First prompt of a repository- or book-length task (chosen: RepoBench and InfiniteBench prompts
run from about 16,000 to over 120,000 tokens)."""
LONG_TURNS: Mixture = ((1.0, 6.0, 0.5),)
"""Turns of such a task (chosen: a few look-ups, then the answer)."""


def synth(
    n: int,
    *,
    seed: int = 0,
    regime_name: str = "mixed",
    rate: float | None = None,
    arrivals: str = "poisson",
    long_context: float = 0.0,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
) -> list[TraceSession]:
    """Return ``n`` sessions in order of arrival.

    Args:
        n: how many.
        seed: same seed, same sessions.
        regime_name: "light", "mixed", "heavy", "interactive"
            (:func:`mars.traces.regimes.regime`), or "hybrid", which takes the first three in turn.
        rate: sessions per second; None: all arrive at 0.
        arrivals: the arrival process (:func:`mars.traces.arrivals.arrival_times`).
        long_context: share of sessions that begin with a very long prompt and have few turns.
        max_prompt_tokens: contexts are compacted before they pass this (or up to 15% earlier).

    Raises:
        TraceError: a setting makes no sense.
    """
    if n < 1:
        raise TraceError(f"{n} is too small. Give at least 1.", field="n")
    if not 0.0 <= long_context <= 1.0:
        raise TraceError(f"{long_context} is no share. Give 0 to 1.", field="long_context")
    names = REGIMES[:3] if regime_name == "hybrid" else (regime_name,)
    process = "together" if rate is None else arrivals
    times = arrival_times(n, rate or 1.0, process, seed=seed)
    sessions: list[TraceSession] = []
    for index in range(n):
        name = names[index % len(names)]
        kind = regime(name)
        rng = np.random.default_rng([seed, REGIMES.index(name), index])
        is_long = bool(rng.random() < long_context)
        sessions.append(
            TraceSession(
                session_id=f"{name}-{seed}-{index}",
                arrival_s=float(times[index]),
                turns=_turns(rng, kind, name, is_long, max_prompt_tokens),
                source="mars synth",
                task="long-context" if is_long else name,
            )
        )
    return sessions


def _turns(
    rng: Generator, kind: Regime, name: str, is_long: bool, max_prompt_tokens: int
) -> tuple[TraceTurn, ...]:
    count = _one(rng, LONG_TURNS if is_long else kind.turns)
    num_turns = min(max(1, round(count)), kind.max_turns)
    outputs = np.maximum(MIN_OUTPUT_TOKENS, draw_mixture(rng, kind.output, num_turns).round())
    num_shared = int(rng.choice(kind.shared_tokens))
    prompts, resets = _prompts(rng, kind, is_long, outputs, num_shared, max_prompt_tokens)
    tools = _tools(rng, kind, num_turns)
    gaps, asks = _gaps(rng, kind, num_turns)
    shared = (f"synth:{name}:{num_shared}", num_shared) if num_shared else None
    return tuple(
        TraceTurn(
            prompt_tokens=int(prompts[i]),
            output_tokens=int(outputs[i]),
            reused_tokens=0 if resets[i] and i else None,
            shared_prefix=shared if resets[i] else None,
            # A human's request ends without a tool; the last turn is the answer.
            tools=() if asks[i] or i == num_turns - 1 else (tools[i],),
            gap_s=round(float(gaps[i]), 4),
        )
        for i in range(num_turns)
    )


def _one(rng: Generator, mixture: Mixture) -> float:
    return float(draw_mixture(rng, mixture, 1)[0])


def _prompts(
    rng: Generator,
    kind: Regime,
    is_long: bool,
    outputs: NDArray[np.float64],
    num_shared: int,
    max_prompt_tokens: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the prompt of every turn, and where the context starts anew (turn 0 included)."""
    num_turns = len(outputs)
    limit = round(max_prompt_tokens * rng.uniform(*COMPACTION_SHARE))
    appended = draw_mixture(rng, kind.append, num_turns).round()
    prompts = np.zeros(num_turns, dtype=np.int64)
    resets = np.zeros(num_turns, dtype=np.bool_)
    first = LONG_FIRST_PROMPT if is_long else kind.first_prompt
    prompts[0] = _fresh_prompt(rng, first, num_shared, limit)
    resets[0] = True
    for i in range(1, num_turns):
        # The prompt holds the reply before it, so it grows by at least that.
        grown = prompts[i - 1] + max(appended[i], outputs[i - 1] + 1)
        resets[i] = grown > limit
        prompts[i] = (
            _fresh_prompt(rng, kind.compacted or first, num_shared, limit) if resets[i] else grown
        )
    return prompts, resets


def _fresh_prompt(
    rng: Generator, tokens: dict[str, float] | Mixture, num_shared: int, limit: int
) -> int:
    if isinstance(tokens, dict):
        drawn = float(draw_quantiles(rng, tokens, 1)[0])
    else:
        drawn = _one(rng, tokens)
    return round(min(max(drawn, num_shared + 64), limit))


def _tools(rng: Generator, kind: Regime, num_turns: int) -> list[TraceTool]:
    weights = np.array([tool.mix for tool in kind.tools], dtype=np.float64)
    picks = rng.choice(len(weights), size=num_turns, p=weights / weights.sum())
    durations = np.zeros(num_turns)
    for index, tool in enumerate(kind.tools):
        chosen = picks == index
        durations[chosen] = tool.draw_s(rng, int(chosen.sum()), kind.limit_s)
    return [
        fill_in(kind.tools[pick].name, round(float(seconds), 4), rng)
        for pick, seconds in zip(picks, durations, strict=True)
    ]


def _gaps(
    rng: Generator, kind: Regime, num_turns: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the client's wait after every turn, and where it is a human's."""
    if isinstance(kind.harness_s, dict):
        gaps = draw_quantiles(rng, kind.harness_s, num_turns)
    else:
        gaps = np.full(num_turns, kind.harness_s)
    asks = np.zeros(num_turns, dtype=np.bool_)
    if kind.requests is not None and kind.human_gap is not None:
        lengths = np.maximum(1, draw_mixture(rng, kind.requests, num_turns).round())
        ends = np.cumsum(lengths).astype(np.int64) - 1
        ends = ends[ends < num_turns - 1]
        asks[ends] = True
        gaps[ends] = draw_mixture(rng, kind.human_gap, len(ends))
    gaps[-1] = 0.0
    return gaps, asks
