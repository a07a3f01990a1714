# SPDX-License-Identifier: Apache-2.0
"""Half-computed prompts must not fill the memory and then evict one another.

Seen on the authors' preview, where shrunk and capped chunks let many prompts begin at once: six
times the prefill work (59 to 79 M computed tokens where a static cap needs 13 M).
"""

from __future__ import annotations

import pytest

from mars.bench.result import Result
from mars.core.model import Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.sim.run import SimConfig, simulate
from mars.traces.schema import TraceSession, TraceTurn

NAMES = scheduling_policies.names()
PROMPT = 6000
NUM_SESSIONS = 40
NEEDED = NUM_SESSIONS * (PROMPT + 20 - 1)
"""Tokens to compute if nothing is computed twice."""


class RoundRobin(BasePolicy):
    """The worst for memory: every prompt begins, all go on in turn by small pieces."""

    def rank(self, turn: Turn, now: float) -> Rank:
        last = turn.last_service_time
        return (-1.0 if last is None else last, turn.arrival_time)

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        return 64 if turn.is_prefill else None


class BoundedRoundRobin(RoundRobin):
    """The same, told to start only what can also finish."""

    bounds_partial_prefills = True


def crowded(policy: str) -> Result:
    """Forty prompts at once, of which the pool holds three."""
    turns = (TraceTurn(prompt_tokens=PROMPT, output_tokens=20),)
    trace = [
        TraceSession(session_id=f"s{i:02}", arrival_s=0.01 * i, turns=turns)
        for i in range(NUM_SESSIONS)
    ]
    config = SimConfig(policy=policy, kv_tokens=20_000, max_num_batched_tokens=2048)
    return simulate(trace, config)


def test_prompts_that_begin_freely_evict_one_another() -> None:
    """What the bound is there for does happen without it."""
    summary = crowded(f"{__name__}.RoundRobin").summary
    assert summary.computed_tokens is not None
    assert summary.computed_tokens > 2 * NEEDED


def test_the_bound_alone_ends_it() -> None:
    summary = crowded(f"{__name__}.BoundedRoundRobin").summary
    assert summary.computed_tokens == NEEDED
    assert summary.preemptions == 0


@pytest.mark.parametrize("name", NAMES)
def test_half_computed_prompts_do_not_evict_one_another(name: str) -> None:
    if not scheduling_policies.create(name).bounds_partial_prefills:
        pytest.skip("does not claim it")
    summary = crowded(name).summary
    assert summary.computed_tokens == NEEDED
    assert summary.recomputed_tokens == 0
