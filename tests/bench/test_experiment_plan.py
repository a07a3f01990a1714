# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

import pytest

from mars.bench.experiment_plan import (
    Experiment,
    Load,
    Part,
    cells,
    check_machines,
    choose_sessions,
    load_experiment,
)
from mars.bench.scenario import ScenarioError
from mars.traces.io import write_trace
from tests.bench.conftest import session

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SHIPPED = sorted(p for p in SCENARIOS.glob("*.toml") if "[[contenders]]" in p.read_text())
OWN = {"policy", "policy_options", "admission", "admission_options"} | {
    "tool_policy",
    "tool_policy_options",
}
"""The fields of a cell's config that its contender decides."""

TINY = """
title = "tiny"
reference = "fcfs"
seeds = 2
caps = [1, 2]

[workload]
sessions = 4
low_rate_per_s = 0.01
rates_per_s = [0.5]

[[workload.parts]]
regime = "light"
max_turns = 3

[[machines]]
label = "small"
profile = "h100-qwen3-coder-30b"
cpus = 2
kv_tokens = 20000

[[contenders]]
label = "fcfs"
policy = "fcfs"

[[contenders]]
label = "mars"
policy = "mars"
admission = "mars"
"""


def load(text: str, folder: Path) -> Experiment:
    path = folder / "x.toml"
    path.write_text(text)
    return load_experiment(path)


def test_cells_come_seed_by_seed_with_the_low_load_and_the_same_caps_for_whoever_is_swept(
    tmp_path: Path,
):
    plan = cells(load(TINY, tmp_path))
    assert [c.seed for c in plan] == sorted(c.seed for c in plan)
    here = [(c.contender, c.cap) for c in plan if c.seed == 1 and c.rate_per_s == 0.01]
    assert here == [("fcfs", None), ("fcfs", 1), ("fcfs", 2), ("mars", None)]
    assert {c.rate_per_s for c in plan} == {0.01, 0.5}
    assert [c.config.admission for c in plan[:4]] == ["none", "cap:1", "cap:2", "mars"]
    assert len(cells(load(TINY, tmp_path), 5)) == 5 * 8


def test_whoever_has_an_admission_of_its_own_can_be_swept_too(tmp_path: Path):
    plan = cells(load(TINY + "sweeps_caps = true\n", tmp_path), 1)
    admissions = [c.config.admission for c in plan if c.contender == "mars"]
    assert admissions == ["mars", "cap:1", "cap:2"] * 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_treat_all_contenders_alike(path: Path):
    experiment = load_experiment(path)
    check_machines(experiment)
    assert experiment.seeds >= 5
    plan = cells(experiment)
    shared = defaultdict(set)
    for cell in plan:
        config = dataclasses.asdict(cell.config)
        rest = tuple(sorted((k, str(v)) for k, v in config.items() if k not in OWN))
        shared[cell.machine, cell.rate_per_s, cell.seed].add(rest)
    assert all(len(configs) == 1 for configs in shared.values())
    caps = {c.label: {x.cap for x in plan if x.contender == c.label} for c in experiment.contenders}
    for contender in experiment.contenders:
        expected = {None, *experiment.caps} if contender.is_swept else {None}
        assert caps[contender.label] == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cpus = 2", "cores = 2", "unknown field `cores`"),
        ("caps = [1, 2]", "caps = [1, 1]", "caps: one stands twice"),
        ('reference = "fcfs"', 'reference = "lifo"', "'lifo' is no contender"),
        ("rates_per_s = [0.5]", "rates_per_s = [0.005]", "rates_per_s must ascend"),
        ('regime = "light"', "share = 2.0", "either trace or regime"),
        ('label = "mars"', 'label = "fcfs"', "two have the same label"),
        ("low_rate_per_s = 0.01", "", "missing required field `low_rate_per_s`"),
        ('policy = "mars"', 'policy = "mars"\npolicy_options.cost = 1', "every policy is offered"),
        ('policy = "fcfs"', 'policy = "fcfs"\ncaps = [3]', "unknown field `caps`"),
        ("seeds = 2", "seeds =", "not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str):
    assert old in TINY
    with pytest.raises(ScenarioError, match=message):
        load(TINY.replace(old, new, 1), tmp_path)


def test_a_pool_too_small_is_found_before_anything_runs(tmp_path: Path):
    experiment = load(TINY.replace("kv_tokens = 20000", "kv_tokens = 16"), tmp_path)
    with pytest.raises(ScenarioError, match="machine 'small': kv_tokens = 16"):
        check_machines(experiment)


def test_loads_have_the_same_sessions_in_the_same_pattern_and_seeds_do_not():
    load = Load(
        sessions=5,
        low_rate_per_s=0.1,
        parts=(Part(regime="light", share=3, max_turns=2), Part(trace="public:swe-agent")),
    )
    slow, fast = choose_sessions(load, 1, 0.1), choose_sessions(load, 1, 0.2)
    assert [s.session_id for s in slow] == [s.session_id for s in fast]
    assert [s.turns for s in slow] == [s.turns for s in fast]
    assert [s.arrival_s for s in slow] == pytest.approx([2 * s.arrival_s for s in fast])
    synthetic = [s for s in slow if s.source == "mars synth"]
    assert len(synthetic) == 4
    assert all(len(s.turns) <= 2 for s in synthetic)
    other = choose_sessions(load, 2, 0.1)
    assert {s.session_id for s in slow} != {s.session_id for s in other}


def test_sub_agents_still_follow_their_parents(tmp_path: Path):
    trace = tmp_path / "t.jsonl"
    child = session("child", arrival_s=7.0, parent="root")
    write_trace(trace, [session("root", arrival_s=5.0), child, session("other", arrival_s=6.0)])
    load = Load(sessions=2, low_rate_per_s=0.5, parts=(Part(trace=str(trace)),))
    arrivals = {s.session_id: s.arrival_s for s in choose_sessions(load, 1, 0.5)}
    assert set(arrivals) == {"root", "child", "other"}
    assert arrivals["child"] == pytest.approx(arrivals["root"] + 2.0)


def test_unique_sessions_are_not_drawn_twice():
    load = Load(
        sessions=33, low_rate_per_s=0.5, is_unique=True, parts=(Part(trace="public:swe-agent"),)
    )
    with pytest.raises(ScenarioError, match="33 unique sessions asked of public:swe-agent"):
        choose_sessions(load, 1, 0.5)
