# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.bench.experiment_plan import Experiment, disguise
from mars.bench.experiment_targets import closed_share, targets
from mars.bench.scenario import ScenarioError
from mars.traces.synth import synth
from tests.bench.test_experiment_knee import AIMED, measured
from tests.bench.test_experiment_plan import load


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load(AIMED, tmp_path)


CURVE = {0.01: (1.0, 1.0, 1.0, 1.005), 0.2: (5.0, 3.1, 4.0, 2.0), 0.5: (9.0, 6.0, 7.0, 3.0)}


def test_each_target_says_what_was_measured_and_whether_it_is_met(experiment: Experiment):
    found = {t.text: t for t in targets(experiment, measured(experiment, CURVE))}
    overload = found["mean >= 2x better than every baseline as published"]
    assert overload.measured == "3.000 [3.000, 3.000] (fcfs)"
    assert overload.is_met
    assert not found["mean >= 4x better than plain FCFS"].is_met
    knee = found["mean >= 1.3x better than the strongest baseline"]
    assert knee.measured.startswith("1.55")
    assert knee.verdict == "met"
    assert "knee (slowdown 3.10 of fcfs, cap 1)" in knee.place
    low = found["within 1% of fcfs at low load, on the mean"]
    assert low.measured == "+0.50%"
    assert low.is_met


def test_without_a_knee_in_range_the_comparison_is_said_to_be_missing(experiment: Experiment):
    curve = {0.01: (1.0, 1.0, 1.0, 1.02), 0.5: (2.0, 1.9, 2.0, 2.5)}
    found = {t.text: t for t in targets(experiment, measured(experiment, curve))}
    assert found["comparison at the knee"].verdict == "not measured"
    worst = found["mean never below 1x of the strongest baseline, at any load"]
    assert worst.verdict == "missed"
    assert not found["within 1% of fcfs at low load, on the mean"].is_met


def test_the_gap_that_is_closed_is_reckoned_from_the_bound(experiment: Experiment):
    found = measured(experiment, CURVE)
    assert closed_share(found[-1], experiment) is None
    found[-1].lower_bounds_s = [1.0, 1.0, 1.0]
    # From 6 down to 3, of 5 that there are.
    assert closed_share(found[-1], experiment) == pytest.approx(0.6)


def test_a_knee_needs_somebody_to_compare(tmp_path: Path):
    with pytest.raises(ScenarioError, match="finds_knee: say with `ours`"):
        load(AIMED.replace('ours = "mars"\n', ""), tmp_path)


def test_disguised_tools_take_what_they_took():
    sessions = synth(4, seed=1, regime_name="mixed")

    def calls(of: list) -> list:
        return [(t.name, t.duration_s) for s in of for turn in s.turns for t in turn.tools]

    assert disguise(sessions, "recorded", 1) == sessions
    missing, shuffled = (calls(disguise(sessions, how, 1)) for how in ("missing", "shuffled"))
    recorded = calls(sessions)
    assert {name for name, _ in missing} == {"tool"}
    assert [d for _, d in missing] == [d for _, d in shuffled] == [d for _, d in recorded]
    assert sorted(n for n, _ in shuffled) == sorted(n for n, _ in recorded)
    assert [n for n, _ in shuffled] != [n for n, _ in recorded]


TIER = AIMED.replace(
    "[[contenders]]",
    """[[machines]]
label = "tier"
profile = "h100-qwen3-coder-30b"
cpus = 2
kv_tokens = 20000
host_kv_tokens = 400000

[[contenders]]""",
    1,
)


def test_host_memory_is_held_against_the_same_machine_without(tmp_path: Path):
    experiment = load(TIER, tmp_path)
    plain = [p for p in measured(experiment, CURVE) if p.machine == "small"]
    faster = {0.01: (1.0, 1.0, 1.0, 1.02), 0.5: (4.0, 3.0, 3.5, 2.0)}
    tier = [p for p in measured(experiment, faster) if p.machine == "small"]
    for point in tier:
        point.machine = "tier"
    found = {(t.text, t.place): t for t in targets(experiment, [*plain, *tier])}
    busy = "tier, 0.5/s"
    within = found["mean >= 1.2x better than the strongest baseline with host memory", busy]
    assert within.measured.startswith("1.500")
    beyond = found["mean >= 2x better than the strongest baseline without host memory", busy]
    assert beyond.measured.startswith("3.000")
    assert within.is_met
    assert beyond.is_met
    own = "mean no slower than without host memory, within 1%"
    assert found[own, busy].is_met
    assert not found[own, "tier, 0.01/s"].is_met, "1.02 against 1.005"
    assert not any("host memory" in text for text, place in found if place.startswith("small"))
