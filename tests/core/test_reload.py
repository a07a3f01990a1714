# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.core.copies import HostLink, HostMemory
from mars.core.hosttier import Loading, TierOrder, is_roomy
from mars.core.model import Session, Turn
from mars.core.reload import TieredCost
from mars.core.retention import FlatCost, PriceTable

LINK = HostLink(bytes_per_s=16e6, latency_s=0.001)
HOST = HostMemory(LINK, bytes_per_block=16_000, num_blocks=1000)


def tiered() -> TieredCost:
    """1 ms for 16 tokens over the link, 2 ms a token to compute."""
    return TieredCost(FlatCost(0.002), HOST, block_size=16)


def turn(name: str = "r", prompt: int = 100) -> Turn:
    return Turn(name, Session("s", 0.0), 0, 0.0, prompt)


def test_a_reload_costs_latency_and_bytes() -> None:
    assert tiered().reload_s(0) == 0.0
    assert tiered().reload_s(1600) == pytest.approx(0.001 + 0.1)
    assert tiered().prefill_s(100) == pytest.approx(0.2)


def test_a_return_copies_what_the_host_has_and_computes_the_rest() -> None:
    prices = PriceTable(tiered())
    assert prices.has_tier
    assert prices.return_s(4096, 0, 0) == pytest.approx(prices.prefill_s(4096))
    both = prices.return_s(8192, 1600, 4096)
    assert both == pytest.approx(tiered().reload_s(2496) + prices.prefill_s(4096, 4096))
    # What the GPU has beyond the host needs no copy.
    assert prices.return_s(8192, 4096, 1600) == pytest.approx(prices.prefill_s(4096, 4096))
    assert prices.return_s(4096, 0, 10**6) == pytest.approx(tiered().reload_s(4096))


def test_without_host_memory_a_return_is_a_prefill() -> None:
    prices = PriceTable(FlatCost(0.002))
    assert not prices.has_tier
    assert prices.return_s(8192, 4096, 8192) == prices.prefill_s(4096, 4096)
    assert prices.reload_s(1) == float("inf")


def test_a_loading_turn_is_known_from_its_copy_to_its_start() -> None:
    loading, waiting = Loading(), turn()
    loading.end(waiting)
    loading.begin(waiting, 64)
    assert waiting.is_loading
    assert list(loading) == ["r"]
    assert waiting.num_computed_tokens == 64
    loading.end(waiting)
    assert not waiting.is_loading
    assert not loading


def test_short_contexts_and_sessions_far_on_go_first() -> None:
    order = TierOrder(s_per_token=0.1, s_per_turn=10.0, most_s=30.0)
    short, long, late = turn(prompt=100), turn(prompt=500), turn(prompt=500)
    late.turn_index = 2
    assert order.handicap_s(short) == pytest.approx(10.0)
    assert order.handicap_s(long) == pytest.approx(50.0)
    assert order.handicap_s(late) == pytest.approx(30.0)
    late.turn_index = 100
    assert order.handicap_s(late) == pytest.approx(20.0), "bounded: nobody waits for ever"


def test_host_memory_is_roomy_from_twice_the_pool() -> None:
    assert is_roomy(200, 100)
    assert not is_roomy(199, 100)
    assert not is_roomy(0, 0)
