# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.bench.experiment import cell_key, run_cell
from mars.bench.experiment_plan import cells
from mars.bench.ideal import ideal_time_s
from mars.bench.oracle import future_of
from mars.profiles import load_profile
from mars.traces.synth import synth
from tests.bench.test_experiment_knee import AIMED
from tests.bench.test_experiment_plan import load

KNOWING = """
[[contenders]]
label = "clairvoyant"
policy = "mars.bench.oracle.Oracle"
knows_trace = true
sweeps_caps = false
"""


def test_the_future_ends_with_the_session():
    cost = load_profile("h100-qwen3-coder-30b").cost
    sessions = synth(3, seed=1, regime_name="light")
    future = future_of(sessions, cost)
    for session in sessions:
        rows = future[session.session_id]
        assert len(rows) == len(session.turns)
        assert rows[0][0] == pytest.approx(ideal_time_s(session, cost), rel=1e-6)
        lefts = [left_s for left_s, _ in rows]
        assert lefts == sorted(lefts, reverse=True)


def test_who_is_told_the_future_is_a_reference_and_no_baseline(tmp_path: Path):
    experiment = load(AIMED + KNOWING, tmp_path)
    assert experiment.baselines == ("fcfs",)
    told = next(c for c in cells(experiment, 1) if c.knows_trace and c.rate_per_s == 0.5)
    key = cell_key(experiment, told)
    record = run_cell(experiment.workload, told, key)
    assert record.summary is not None
    assert record.summary.sessions_failed == 0
    assert record.lower_bound_s is not None
    assert record.lower_bound_s <= (record.summary.sct_mean_s or 0.0)
