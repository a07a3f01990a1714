# SPDX-License-Identifier: Apache-2.0
"""A session's ideal time: alone on an idle machine, nothing of its KV ever lost.

Per turn: prefill of the tokens no earlier turn of the session left in the cache, one step
per further output token, its tools one after the other as recorded, and the recorded gap.
It is the denominator of slowdown and goodput, and needs no second run.
"""

from __future__ import annotations

from collections.abc import Sequence

from mars.core.cost import CostModel
from mars.traces.content import Segment, common_prefix_tokens, layout, num_tokens
from mars.traces.schema import TraceSession, TraceTurn

BLOCK_SIZE = 16
"""Tokens per KV block, vLLM's default: only whole blocks are found again."""
CHUNK_TOKENS = 8192
"""vLLM's ``max_num_batched_tokens`` on large GPUs."""


def ideal_time_s(
    session: TraceSession,
    cost: CostModel,
    *,
    block_size: int = BLOCK_SIZE,
    chunk_tokens: int = CHUNK_TOKENS,
) -> float:
    """Seconds from the session's arrival to the end of its last turn's tools.

    Args:
        session: the session as it will be run (cut turns are not counted).
        cost: step times of the machine.
        block_size: tokens per KV block.
        chunk_tokens: most prefill tokens of one step.
    """
    total_s, past = 0.0, list[Sequence[Segment]]()
    content = layout(session)
    last = len(session.turns) - 1
    for index, turn in enumerate(session.turns):
        prompt = content.prompts[index]
        cached = cached_tokens(prompt, past, block_size)
        total_s += turn_s(turn, cached, cost, chunk_tokens) + tools_s(turn)
        total_s += turn.gap_s if index < last else 0.0
        past.append([*prompt, content.replies[index]])
    return total_s


def turn_s(turn: TraceTurn, cached: int, cost: CostModel, chunk_tokens: int) -> float:
    """Seconds the engine needs for one turn alone, ``cached`` of its prompt in the cache."""
    prefill_s = cost.prefill_s(turn.prompt_tokens - cached, cached, chunk_tokens)
    num_decodes = max(0, turn.output_tokens - 1)  # the prefill samples the first token
    middle = turn.prompt_tokens + (num_decodes - 1) // 2  # step time is linear in context
    return prefill_s + num_decodes * cost.decode_s(middle)


def tools_s(turn: TraceTurn) -> float:
    """Seconds of the turn's tool calls, one after the other."""
    return sum(tool.duration_s for tool in turn.tools)


def cached_tokens(
    prompt: Sequence[Segment], past: Sequence[Sequence[Segment]], block_size: int
) -> int:
    """Tokens of ``prompt`` that earlier contexts of the session left in the prefix cache.

    Whole blocks only, and never the last token: the engine must compute something.
    """
    longest = max((common_prefix_tokens(prompt, one) for one in past), default=0)
    longest = min(longest, num_tokens(prompt) - 1)
    return max(0, longest) // block_size * block_size
