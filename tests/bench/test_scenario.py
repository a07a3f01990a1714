# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mars.bench.demo import override
from mars.bench.runner import Experiment
from mars.bench.scenario import (
    Contestant,
    Scenario,
    ScenarioError,
    Workload,
    choose_sessions,
    load_scenario,
    pressure,
)
from mars.core.policy import admission_policies, scheduling_policies, tool_policies
from mars.profiles import load_profile
from mars.traces.content import common_prefix_tokens, prompt_segments
from mars.traces.io import write_trace
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

ROOT = Path(__file__).parents[2]


def _trace(path: Path, num_sessions: int = 6) -> str:
    tool = TraceTool(name="test", duration_s=20.0, cpu_s=10.0)
    turns = tuple(
        TraceTurn(prompt_tokens=1000 * (i + 1), output_tokens=50, tools=(tool,), gap_s=9.0)
        for i in range(10)
    )
    sessions = [TraceSession(session_id=f"s{i}", turns=turns) for i in range(num_sessions)]
    sessions.append(TraceSession(session_id="short", turns=turns[:2]))
    write_trace(path, sessions)
    return str(path)


def _workload(path: Path, **fields: object) -> Workload:
    given = {"trace": _trace(path), "sessions": 4, "turns": 3, **fields}
    return msgspec.convert(given, Workload)


def test_a_cut_starts_deep_in_the_session_and_keeps_what_it_keeps(tmp_path: Path) -> None:
    workload = _workload(tmp_path / "t.jsonl", start_context_tokens=4500, min_turns=3)
    for session in choose_sessions(workload, seed=1):
        assert [t.prompt_tokens for t in session.turns] == [5000, 6000, 7000]
        assert session.turns[0].tools[0].duration_s == 20.0


def test_waits_are_bounded_and_cpu_shrinks_with_them(tmp_path: Path) -> None:
    workload = _workload(tmp_path / "t.jsonl", max_gap_s=2.0, max_tool_s=4.0)
    turn = choose_sessions(workload, seed=1)[0].turns[0]
    assert turn.gap_s == 2.0
    assert (turn.tools[0].duration_s, turn.tools[0].cpu_s) == (4.0, 2.0)


def test_same_seed_same_sessions_and_arrivals_in_order(tmp_path: Path) -> None:
    workload = _workload(tmp_path / "t.jsonl")
    first, again = choose_sessions(workload, 1), choose_sessions(workload, 1)
    assert first == again
    assert first != choose_sessions(workload, 2)
    arrivals = [s.arrival_s for s in first]
    assert arrivals == sorted(set(arrivals))


@pytest.mark.parametrize("bounds", [{"max_context_tokens": 900}, {"min_turns": 11, "turns": 11}])
def test_no_fitting_session_is_an_error(tmp_path: Path, bounds: dict[str, int]) -> None:
    workload = _workload(tmp_path / "t.jsonl", **bounds)
    with pytest.raises(ScenarioError, match="no session that fits"):
        choose_sessions(workload, 1)


def test_more_sessions_than_recorded_are_copies_with_content_of_their_own(tmp_path: Path) -> None:
    sessions = choose_sessions(_workload(tmp_path / "t.jsonl", sessions=9, min_turns=3), 1)
    assert len({s.session_id for s in sessions}) == 9
    prompts = [prompt_segments(s, 0) for s in sessions]
    assert common_prefix_tokens(prompts[0], prompts[8]) == 0


def test_pressure_is_the_sum_of_peaks_over_the_pool(tmp_path: Path) -> None:
    sessions = choose_sessions(_workload(tmp_path / "t.jsonl", min_turns=3), 1)
    load = pressure(sessions, kv_tokens=6100)
    assert load.peak_tokens == 4 * 3050
    assert load.working_set == 2.0
    assert load.largest == 0.5
    assert (load.num_turns, load.num_tools, load.tool_s) == (12, 12, 240.0)
    assert "2.0x the KV pool" in str(load)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "not valid TOML"),
        ('title = "x"\npolicies = []', "workload"),
        (
            'title="x"\npolicies=[]\n[workload]\ntrace="t"\nsesions=3\n[machine]\nprofile="p"',
            "sesions",
        ),
        ('title="x"\npolicies=[]\n[workload]\ntrace="t"\n[machine]\nprofile="p"', "policies"),
    ],
)
def test_a_bad_scenario_names_file_and_fault(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=says) as caught:
        load_scenario(path)
    assert "bad.toml" in str(caught.value)


def test_a_missing_scenario_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path / "none.toml")


def _demo() -> Scenario:
    return load_scenario(ROOT / "scenarios" / "demo.toml")


def test_the_demo_fits_the_tree_and_presses() -> None:
    scenario = _demo()
    sessions = choose_sessions(scenario.workload, scenario.seed)
    kv_tokens = scenario.machine.kv_tokens or load_profile(scenario.machine.profile).kv_tokens
    load = pressure(sessions, kv_tokens)
    assert load.num_sessions >= 16
    assert load.working_set > 3.0
    assert load.largest < 0.5
    for contestant in scenario.policies:
        cost = {"cost": load_profile(scenario.machine.profile).cost}
        scheduling_policies.create(contestant.policy, cost)
        admission_policies.create(contestant.admission, cost)
        tool_policies.create(contestant.tool_policy)


def test_what_the_command_line_says_replaces_the_file() -> None:
    changed = override(
        _demo(),
        workload={"sessions": 4, "turns": None},
        machine={"time_scale": 2.0},
        policies=["mars", "autellix@cap:8"],
        seed=7,
    )
    assert changed.workload.sessions == 4
    assert changed.workload.turns == _demo().workload.turns
    assert (changed.machine.time_scale, changed.seed) == (2.0, 7)
    assert changed.policies[0] == _demo().policies[1]
    assert changed.policies[1] == Contestant(
        label="autellix@cap-8", policy="autellix", admission="cap:8"
    )


def test_a_value_out_of_bounds_is_refused() -> None:
    with pytest.raises(ScenarioError, match="the command line"):
        override(_demo(), workload={"sessions": 0}, machine={})


def test_an_unknown_policy_is_named_before_anything_starts() -> None:
    scenario = override(_demo(), workload={}, machine={}, policies=["fcfs@nosuch"])
    with pytest.raises(ScenarioError, match=r"fcfs@nosuch.*unknown admission policy"):
        Experiment.prepare(scenario)
