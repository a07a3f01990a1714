# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.bench.experiment_knee import further_loads, knee_point, next_load, strongest
from mars.bench.experiment_plan import Experiment
from mars.bench.experiment_table import Point, points
from tests.bench.test_experiment_plan import TINY, load
from tests.bench.test_experiment_table import SEEDS, cell

AIMED = TINY.replace('reference = "fcfs"', 'reference = "fcfs"\nours = "mars"\nfinds_knee = true')
WHO = [("fcfs", None), ("fcfs", 1), ("fcfs", 2), ("mars", None)]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load(AIMED, tmp_path)


def measured(experiment: Experiment, curve: dict[float, tuple[float, ...]]) -> list[Point]:
    """Points by load; each gives the completion times of FCFS, caps 1 and 2, and ours."""
    cells = [
        cell(name, cap, seed, sct_s, rate_per_s=rate)
        for rate, times in curve.items()
        for (name, cap), sct_s in zip(WHO, times, strict=True)
        for seed in SEEDS
    ]
    further = {"small": [rate for rate in curve if rate not in (0.01, 0.5)]}
    return points(experiment, cells, SEEDS, further)


def test_the_strongest_baseline_may_have_a_cap_and_is_never_ours(experiment: Experiment):
    (point,) = measured(experiment, {0.5: (9.0, 4.0, 6.0, 1.0)})
    entry = strongest(point, experiment.baselines)
    assert entry is not None
    assert entry.label == "fcfs, cap 1"


def test_the_next_load_lies_between_those_around_the_knee(experiment: Experiment):
    found = measured(experiment, {0.01: (1.5, 2.0, 2.0, 1.0), 0.5: (9.0, 6.0, 7.0, 3.0)})
    rate = next_load(found, experiment.baselines)
    # From 1.5 to 6 is twice from 1.5 to 3: half of the way, where slowdown grows exponentially.
    assert rate == pytest.approx(0.255, abs=0.001)
    assert further_loads(experiment, found, {}) == {"small": [rate]}


def test_a_load_near_the_knee_ends_the_search(experiment: Experiment):
    curve = {0.01: (1.5, 2.0, 2.0, 1.0), 0.2: (5.0, 3.2, 4.0, 2.0), 0.5: (9.0, 6.0, 7.0, 3.0)}
    found = measured(experiment, curve)
    at = knee_point(found, experiment.baselines)
    assert at is not None
    assert at.rate_per_s == 0.2
    assert further_loads(experiment, found, {"small": [0.2]}) is None


def test_a_knee_beyond_what_was_run_is_not_made_up(experiment: Experiment):
    found = measured(experiment, {0.01: (1.1, 1.2, 1.2, 1.0), 0.5: (1.9, 1.6, 1.7, 1.5)})
    assert knee_point(found, experiment.baselines) is None
    assert further_loads(experiment, found, {}) is None


def test_the_search_gives_up_after_a_few_loads(experiment: Experiment):
    curve = {0.01: (1.5, 2.0, 2.0, 1.0), 0.5: (9.0, 6.0, 7.0, 3.0)}
    found = measured(experiment, curve)
    assert further_loads(experiment, found, {"small": [0.1, 0.2, 0.3]}) is None
