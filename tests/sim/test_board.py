# SPDX-License-Identifier: Apache-2.0
"""What the control plane sees: samples that age, counters over a sliding window."""

from mars.core.model import Load
from mars.sim.board import SAMPLE_S, WINDOW_S, LoadBoard


class Counters:
    """An engine's side of a sample, set by hand."""

    def __init__(self) -> None:
        self.num_running = 1
        self.free = 100
        self.computed = 0
        self.recomputed = 0
        self.num_asked = 0

    def load(self, now: float) -> Load:
        self.num_asked += 1
        return Load(
            sampled_at=now,
            kv_blocks_total=100,
            kv_blocks_free=self.free,
            num_running=self.num_running,
            num_waiting=0,
            preemptions=0,
            computed_tokens=self.computed,
            recomputed_tokens=self.recomputed,
        )


def test_a_sample_stands_until_the_next_is_due() -> None:
    engine = Counters()
    board = LoadBoard(engine.load, lambda: 3)
    assert board.load(0.0).kv_usage == 0.0
    engine.free = 40
    assert board.load(SAMPLE_S / 2).kv_usage == 0.0
    assert board.load(SAMPLE_S).kv_usage == 0.6
    assert board.load(SAMPLE_S).num_held == 3
    assert engine.num_asked == 2


def test_an_idle_engine_is_always_seen_as_it_is() -> None:
    engine = Counters()
    engine.num_running = 0
    board = LoadBoard(engine.load, lambda: 0)
    board.load(0.0)
    engine.free = 7
    assert board.load(0.001).kv_blocks_free == 7


def test_waste_is_that_of_the_last_seconds() -> None:
    engine = Counters()
    board = LoadBoard(engine.load, lambda: 0)
    for second in range(20):
        engine.computed += 100
        engine.recomputed += 50 if second < 5 else 0
        load = board.load(float(second))
    assert load.computed_tokens == 100 * WINDOW_S
    assert load.recompute_ratio == 0.0


def test_without_a_host_its_side_is_unknown() -> None:
    load = LoadBoard(Counters().load, lambda: 0).load(0.0)
    assert load.tools_running is None
    assert load.cpu_pressure is None
