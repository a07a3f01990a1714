# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.cost import Accelerator, Architecture, CostModel, roofline

GPU = Accelerator(
    memory_bytes=80 * 10**9,
    bandwidth_bytes_per_s=2e12,
    flops_per_s=1e15,
    bandwidth_efficiency=0.5,
    compute_efficiency=0.4,
    step_overhead_s=0.002,
)
DENSE = Architecture(
    num_layers=10,
    num_heads=8,
    num_kv_heads=2,
    head_size=100,
    hidden_size=1000,
    vocabulary_size=50_000,
    max_positions=65_536,
    weight_bytes=12 * 10**9,
    dense_bytes=10 * 10**9,
    active_parameters=5 * 10**9,
)
MIXTURE = Architecture(
    num_layers=10,
    num_heads=8,
    num_kv_heads=2,
    head_size=100,
    hidden_size=1000,
    vocabulary_size=50_000,
    max_positions=65_536,
    weight_bytes=42 * 10**9,
    dense_bytes=2 * 10**9,
    active_parameters=2 * 10**9,
    expert_bytes=40 * 10**9,
    num_experts=64,
    num_experts_per_token=4,
    num_window_layers=4,
    window_tokens=128,
)
COST = roofline(GPU, DENSE)
batches = st.lists(
    st.tuples(st.integers(0, 100_000), st.integers(1, 8192)), min_size=1, max_size=20
)


def test_one_decode_is_weights_and_kv_over_bandwidth() -> None:
    # 10 GB at 1 TB/s, KV 10 layers x 2 x 2 heads x 100 x 2 B = 8 kB a token, 1,000 tokens,
    # output layer 2 x 1000 x 50000 FLOP at 400 TFLOP/s, and the overhead.
    expected = 0.002 + 0.010 + 1000 * 8_000 / 1e12 + 2 * 1000 * 50_000 / 4e14
    assert COST.step_s([(999, 1)]) == pytest.approx(expected)


def test_long_prefill_is_flops_over_throughput() -> None:
    linear = 8000 * 2 * 5e9 / 4e14
    attention = 4 * 10 * 8 * 100 * (8000 * 20_000 + 8000**2 / 2) / 4e14
    output = 2 * 1000 * 50_000 / 4e14
    assert COST.step_s([(20_000, 8000)]) == pytest.approx(0.002 + linear + attention + output)


def test_short_chunk_with_long_context_still_reads_its_kv() -> None:
    """Two tokens over 50,000 take as long to read the context as one does."""
    one, two = COST.step_s([(50_000, 1)]), COST.step_s([(50_000, 2)])
    assert one <= two < one * 1.01


def test_experts_touched_grow_with_the_batch() -> None:
    cost = roofline(GPU, MIXTURE)
    one, sixteen, many = (cost.decode_s(0, batch) for batch in (1, 16, 4000))
    per_seq = cost.per_seq_s + cost.per_kv_token_s
    assert one - per_seq == pytest.approx(0.002 + 0.002 + 0.040 * 4 / 64)
    expected = 0.004 + 0.040 * (1 - (60 / 64) ** 16)
    assert sixteen - 16 * per_seq == pytest.approx(expected)
    assert many - 4000 * per_seq == pytest.approx(0.002 + 0.042)


def test_window_layers_hold_no_kv_and_cost_their_span_per_token() -> None:
    assert MIXTURE.kv_bytes_per_token == 6 * 2 * 2 * 100 * 2
    flops = 2 * 2e9 + 4 * 8 * 100 * 4 * 128
    assert roofline(GPU, MIXTURE).per_token_s == pytest.approx(flops / 4e14)


def test_nothing_to_compute_takes_no_time() -> None:
    assert COST.step_s([]) == 0.0
    assert COST.step_s([(100, 0)]) == 0.0
    assert COST.prefill_s(0) == 0.0
    assert COST.decode_s(100, batch=0) == 0.0


def test_prefill_is_the_sum_of_its_chunks() -> None:
    expected = COST.step_s([(300, 1000)]) + COST.step_s([(1300, 1000)]) + COST.step_s([(2300, 5)])
    assert COST.prefill_s(2005, context_tokens=300, chunk=1000) == pytest.approx(expected)


def test_decode_agrees_with_step() -> None:
    assert COST.decode_s(5000, batch=7) == pytest.approx(COST.step_s([(5000, 1)] * 7))


@given(batches, st.integers(0, 100_000), st.integers(1, 8192))
def test_more_work_never_takes_less_time(
    batch: list[tuple[int, int]], computed: int, scheduled: int
) -> None:
    assert COST.step_s([*batch, (computed, scheduled)]) > COST.step_s(batch)
    assert COST.step_s([*batch, (computed + 1, scheduled)]) >= COST.step_s(
        [*batch, (computed, scheduled)]
    )


@given(batches)
def test_batching_is_never_slower_than_one_after_the_other(batch: list[tuple[int, int]]) -> None:
    alone = sum(COST.step_s([entry]) for entry in batch)
    assert COST.step_s(batch) <= alone * (1 + 1e-9)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_bad_coefficient_is_named(value: float) -> None:
    with pytest.raises(ValueError, match="per_token_s"):
        CostModel(0.0, 0.0, 0.0, 0.0, value, 0.0, 0.0)
    with pytest.raises(ValueError, match="chunk"):
        COST.prefill_s(10, chunk=0)
