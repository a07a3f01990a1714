# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.model import Load, Session
from mars.core.retention import (
    FlatCost,
    TimeToLive,
    idle_s,
    kept_blocks,
    pool_share,
    return_probability,
    value_per_block_s,
)

shares = st.floats(0.0, 1.0)
positive = st.floats(0.01, 1.0e4)
blocks = st.integers(1, 100_000)


@given(positive, positive, shares, blocks, positive)
def test_value_rises_with_recompute_cost(a, b, probability, num_blocks, hold_s):
    low, high = sorted((a, b))
    assert value_per_block_s(low, probability, num_blocks, hold_s) <= value_per_block_s(
        high, probability, num_blocks, hold_s
    )


@given(positive, shares, shares, blocks, positive)
def test_value_rises_with_the_chance_of_return(recompute_s, a, b, num_blocks, hold_s):
    low, high = sorted((a, b))
    assert value_per_block_s(recompute_s, low, num_blocks, hold_s) <= value_per_block_s(
        recompute_s, high, num_blocks, hold_s
    )


@given(positive, shares, blocks, positive, positive)
def test_value_falls_with_the_time_held(recompute_s, probability, num_blocks, a, b):
    short, long = sorted((a, b))
    assert value_per_block_s(recompute_s, probability, num_blocks, long) <= value_per_block_s(
        recompute_s, probability, num_blocks, short
    )


@given(positive, positive, positive, st.floats(0.3, 3.0))
def test_return_probability_is_one_and_rises_with_the_horizon(elapsed, a, b, shape):
    near, far = sorted((a, b))
    p_near = return_probability(elapsed, near, 2.0, shape)
    p_far = return_probability(elapsed, far, 2.0, shape)
    assert 0.0 <= p_near <= p_far <= 1.0


@given(st.floats(0.0, 1.0e6), st.floats(0.0, 1.0e6), positive)
def test_heavy_tails_return_ever_less_likely(a, b, horizon):
    early, late = sorted((a, b))
    assert return_probability(late, horizon, 1.0, 0.8) <= (
        return_probability(early, horizon, 1.0, 0.8) + 1e-9
    )


def test_an_overflowing_wait_is_no_error():
    assert return_probability(1e300, 1.0, 1e-3, 3.0) == pytest.approx(0.0, abs=1e-9)


def best_by_trying(samples, benefit_s):
    def worth(tau):
        return sum(s <= tau for s in samples) / len(samples) * benefit_s - tau

    return max([worth(tau) for tau in samples] + [0.0]), worth


@given(
    st.lists(st.floats(0.0, 100.0) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=32),
    st.floats(0.01, 300.0),
)
def test_time_to_live_is_the_best_of_all_samples(samples, benefit_s):
    ttl = TimeToLive(window=32)
    for sample in samples:
        ttl.add(sample)
    best, worth = best_by_trying(samples, benefit_s)
    tau = ttl.best_s(benefit_s)
    assert max(0.0, worth(tau)) == pytest.approx(best, abs=1e-6)


def test_time_to_live_forgets_what_left_the_window():
    ttl = TimeToLive(window=16)
    for _ in range(16):
        ttl.add(50.0)
    for _ in range(32):
        ttl.add(1.0)
    assert ttl.best_s(10.0) == 1.0
    assert ttl.mean_s == pytest.approx(1.0)
    assert ttl.num_seen == 48


def test_nothing_learned_nothing_to_gain():
    assert TimeToLive().best_s(100.0) == 0.0
    ttl = TimeToLive()
    ttl.add(1.0)
    assert ttl.best_s(0.0) == 0.0


def test_share_of_an_unknown_pool_is_all_of_it():
    session = Session("s", 0.0, cached_tokens=1600, last_turn_finished_at=5.0)
    assert pool_share(session, Load(0.0)) == 1.0
    assert pool_share(session, Load(0.0, kv_blocks_total=1000)) == 0.1
    assert kept_blocks(session, Load(0.0)) == 100
    assert idle_s(session, 8.0) == 3.0
    assert idle_s(session, 4.0) == 0.0
    assert FlatCost().prefill_s(10_000) == pytest.approx(2.0)
