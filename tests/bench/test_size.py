# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.bench.size import (
    Answer,
    Box,
    Load,
    ServiceLevel,
    SizeError,
    Trial,
    at_rate,
    base_box,
    draw,
    find,
    first_guess_per_s,
    measuring,
    variants,
)
from mars.bench.size_report import draw as draw_figure
from mars.bench.size_report import gain, notes, rows, tree
from mars.sim.run import SimConfig

LEVEL = ServiceLevel(3.0, 0.9)
LOAD = Load(trace="public:swe-agent", num_sessions=6, max_turns=4)


def trial(sessions_per_h: float, share: float, num_active: float = 2.0) -> Trial:
    return Trial(sessions_per_h, share, num_active, 100.0, 0.8, 0.1, 0.05)


def box(num_gpus: int = 1, num_cpus: int = 8) -> Box:
    return base_box(SimConfig(num_cpus=num_cpus), num_gpus)[0]


def test_a_service_level_is_read():
    assert ServiceLevel.parse("goodput@3=0.95") == ServiceLevel(3.0, 0.95)
    assert ServiceLevel.parse("goodput@2.5=1") == ServiceLevel(2.5, 1.0)


@pytest.mark.parametrize("text", ["goodput@3", "ttft=1", "goodput@1=0.9", "goodput@3=0", "x"])
def test_what_is_no_service_level_is_refused(text: str):
    with pytest.raises(SizeError, match="--slo"):
        ServiceLevel.parse(text)


@pytest.mark.parametrize("limit_per_h", [3.0, 100.0, 4000.0])
def test_the_load_is_found_wherever_the_search_begins(limit_per_h: float):
    def falls_at_the_limit(config: SimConfig, rate_per_s: float) -> Trial:
        per_h = rate_per_s * 3600.0
        return trial(per_h, 1.0 if per_h < limit_per_h else 0.5, per_h / 50.0)

    answer = find(box(), LEVEL, 0.03, falls_at_the_limit, lambda *_: None)
    assert answer.sessions_per_h == pytest.approx(limit_per_h, rel=0.08)
    assert answer.num_active == pytest.approx(limit_per_h / 50.0, rel=0.08)
    assert len(answer.trials) < 16
    assert [t.sessions_per_h for t in answer.trials] == sorted(
        t.sessions_per_h for t in answer.trials
    )


def test_a_level_that_is_never_met_or_never_broken_has_no_answer():
    never = find(box(), LEVEL, 1.0, lambda c, r: trial(r * 3600, 0.1), lambda *_: None)
    always = find(box(), LEVEL, 1.0, lambda c, r: trial(r * 3600, 1.0), lambda *_: None)
    assert never.sessions_per_h is always.sessions_per_h is None
    found = notes([never, always], LOAD)
    assert len(found) == 2
    assert "not decided" in found[0]
    assert rows([never])[0][1:] == ["-"] * 6


def test_replicas_divide_cores_and_sessions():
    asked: list[tuple[int, float]] = []

    def linear(config: SimConfig, rate_per_s: float) -> Trial:
        asked.append((config.num_cpus, rate_per_s))
        return trial(rate_per_s * 3600.0, 1.0 if rate_per_s < 0.1 else 0.0)

    answer = find(box(num_gpus=3, num_cpus=10), LEVEL, 0.1, linear, lambda *_: None)
    assert {cpus for cpus, _ in asked} == {3}
    assert answer.sessions_per_h == pytest.approx(3 * 360.0, rel=0.08)
    with pytest.raises(SizeError, match="every one of 2 GPUs a core"):
        base_box(SimConfig(num_cpus=1), 2)


def test_variants_have_one_thing_more():
    base, bytes_per_token = base_box(SimConfig(), 1)
    boxes = variants(base, bytes_per_token, core_step=2, gigabytes=1.0)
    assert [b.label for b in boxes[1:]] == ["1 more GPU", "2 more cores", "1 GB more KV"]
    assert [b.num_gpus for b in boxes] == [1, 2, 1, 1]
    assert [b.num_cpus for b in boxes] == [8, 8, 10, 8]
    more = boxes[3].kv_tokens - base.kv_tokens
    assert more * bytes_per_token == pytest.approx(1e9, rel=1e-4)


def test_another_rate_is_the_same_pattern_stretched():
    slow, fast = at_rate(LOAD, 1, 0.1), at_rate(LOAD, 1, 1.0)
    assert [s.arrival_s for s in slow] == pytest.approx([10 * s.arrival_s for s in fast])
    assert [s.turns for s in slow] == [s.turns for s in draw(LOAD, 1)]


def test_a_machine_is_measured_over_seeds_and_shown():
    machine = box()
    with measuring(LOAD, LEVEL.alpha, [1, 2], 1) as measure_at:
        light = measure_at(machine.replica, 0.001)
        heavy = measure_at(machine.replica, 50.0)
    assert light.share == 1.0
    assert light.num_active < heavy.num_active
    assert light.sct_mean_s < heavy.sct_mean_s
    assert 0.001 < first_guess_per_s(LOAD, machine, 1) < 50.0
    known = Answer(machine, 100.0, 4.0, [trial(90.0, 0.95), trial(110.0, 0.85)])
    better = Answer(machine, 150.0, 4.0, [trial(140.0, 0.95), trial(160.0, 0.85)])
    assert rows([known, better])[1][1:4] == ["150", "4.0", "+50%"]
    assert "mostly beginning and end" in notes([known], LOAD)[0]
    made = tree([known, better], LEVEL, LOAD, [1, 2])
    assert made["schema"] == "mars.size/1"
    assert made["machines"][1]["gain"] == gain(better, 100.0) == pytest.approx(0.5)
    assert len(draw_figure([known, better], LEVEL).axes) == 2
