# SPDX-License-Identifier: Apache-2.0
import pytest

from mars.bench.ideal import cached_tokens, ideal_time_s
from mars.core.cost import CostModel
from mars.traces.content import Segment, prompt_segments
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

COST = CostModel(
    base_s=0.0,
    per_seq_s=0.0,
    weights_s=0.0,
    experts_s=0.0,
    per_token_s=0.001,
    per_pair_s=0.0,
    per_kv_token_s=0.0,
)
"""A token costs 1 ms wherever it stands, so times can be counted by hand."""


def _session(**second: object) -> TraceSession:
    first = TraceTurn(
        prompt_tokens=1000,
        output_tokens=24,
        tools=(TraceTool(name="test", duration_s=2.0), TraceTool(name="read", duration_s=0.5)),
        gap_s=0.25,
    )
    return TraceSession(
        session_id="s",
        turns=(first, TraceTurn(prompt_tokens=1200, output_tokens=10, gap_s=9.0, **second)),  # type: ignore[arg-type]
    )


def test_every_part_is_counted_once() -> None:
    # 1000 prompt + 23 decodes, tools, gap, then 1200 - 1024 found + 9 decodes; no last gap.
    expected = 1.023 + 2.5 + 0.25 + (1200 - 1024) * 0.001 + 0.009
    assert ideal_time_s(_session(), COST) == pytest.approx(expected)


def test_only_whole_blocks_of_the_shared_prefix_are_found() -> None:
    short = ideal_time_s(_session(reused_tokens=1009), COST)
    full = ideal_time_s(_session(), COST)
    assert short - full == pytest.approx(0.016)


def test_the_last_prompt_token_is_always_computed() -> None:
    prompt = [Segment("a", 0, 64)]
    assert cached_tokens(prompt, [[Segment("a", 0, 100)]], 16) == 48


def test_a_return_to_an_earlier_context_finds_it() -> None:
    turns = tuple(
        TraceTurn(prompt_tokens=n, output_tokens=16, blocks=blocks, block_size=16)
        for n, blocks in ((160, ((1, 10),)), (160, ((50, 10),)), (176, ((1, 11),)))
    )
    session = TraceSession(session_id="s", turns=turns)
    past = [prompt_segments(session, 0), prompt_segments(session, 1)]
    assert cached_tokens(prompt_segments(session, 2), past, 16) == 160


def test_decoding_is_priced_at_its_growing_context() -> None:
    by_context = CostModel(
        base_s=0.0,
        per_seq_s=0.0,
        weights_s=0.0,
        experts_s=0.0,
        per_token_s=0.0,
        per_pair_s=0.0,
        per_kv_token_s=1.0,
    )
    session = TraceSession(session_id="s", turns=(TraceTurn(prompt_tokens=100, output_tokens=6),))
    steps = [100.0] + [float(n) for n in range(101, 106)]
    assert ideal_time_s(session, by_context) == pytest.approx(sum(steps), abs=0.51 * 5)
