# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from mars.bench.experiment import CellError, cell_key, run_cell, run_cells
from mars.bench.experiment_plan import Cell, Experiment, cells, load_experiment
from mars.bench.result import read_result
from mars.core.model import Turn
from mars.core.policies.mars import Mars
from mars.core.policy import Rank, UnknownPolicyError
from tests.bench.test_experiment_plan import SHIPPED, TINY, load


class Broken(Mars):
    """A policy with a defect."""

    def rank(self, turn: Turn, now: float) -> Rank:
        raise ZeroDivisionError("no order")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load(TINY, tmp_path)


def keyed(experiment: Experiment) -> list[tuple[str, Cell]]:
    return [(cell_key(experiment, cell), cell) for cell in cells(experiment, 1)]


def test_all_contenders_of_a_point_and_seed_meet_the_same_sessions(experiment: Experiment):
    ran = list(run_cells(experiment, keyed(experiment), num_workers=1))
    assert len(ran) == 8
    for rate in experiment.workload.rates:
        here = [r for r in ran if r.rate_per_s == rate]
        assert len({r.sessions_hash for r in here}) == 1
        assert {r.summary.sessions for r in here if r.summary} == {4}
    capped = {r.cap: r.summary for r in ran if r.contender == "fcfs" and r.rate_per_s == 0.5}
    assert capped[1]
    assert capped[None]
    # One at a time waits outside, which only a cap that is in force can cause.
    assert capped[1].ttft_p99_s > 2 * capped[None].ttft_p99_s


def test_processes_give_the_same_records_and_leave_no_child(experiment: Experiment):
    wanted = keyed(experiment)
    alone = sorted(run_cells(experiment, wanted, num_workers=1), key=lambda r: r.key)
    spread = sorted(run_cells(experiment, wanted, num_workers=2), key=lambda r: r.key)
    assert spread == alone
    assert multiprocessing.active_children() == []


def test_closing_the_iterator_ends_the_workers(experiment: Experiment):
    before = set(multiprocessing.active_children())
    ran = run_cells(experiment, keyed(experiment), num_workers=2)
    next(ran)
    ran.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) == before


def test_a_key_covers_what_decides_the_outcome_and_nothing_else(
    experiment: Experiment, tmp_path: Path
):
    keys = [key for key, _ in keyed(experiment)]
    assert len(set(keys)) == len(keys)
    words = load(TINY.replace('title = "tiny"', 'title = "other"'), tmp_path)
    assert [key for key, _ in keyed(words)] == keys
    more_rates = load(TINY.replace("[0.5]", "[0.5, 0.6]"), tmp_path)
    assert [key for key, _ in keyed(more_rates)][:8] == keys
    for old, new in (("max_turns = 3", "max_turns = 4"), ("cpus = 2", "cpus = 3")):
        changed = load(TINY.replace(old, new), tmp_path)
        assert not {key for key, _ in keyed(changed)} & set(keys)
    tools = load(TINY + 'tool_policy = "shortest"\n', tmp_path)
    same = {key for key, _ in keyed(tools)} & set(keys)
    assert same == {key for key, cell in keyed(experiment) if cell.contender == "fcfs"}


def test_an_unknown_policy_or_option_is_found_before_anything_runs(tmp_path: Path):
    for old, new in (
        ('policy = "mars"', 'policy = "venus"'),
        ('policy = "mars"', 'policy = "mars"\npolicy_options.colour = 1'),
        ('admission = "mars"', 'admission = "mars"\nadmission_options.colour = 1'),
    ):
        with pytest.raises(UnknownPolicyError, match=r"venus|colour"):
            keyed(load(TINY.replace(old, new), tmp_path))


def test_a_defect_of_a_policy_names_the_cell(tmp_path: Path):
    broken = load(TINY.replace('policy = "mars"', f'policy = "{__name__}.Broken"'), tmp_path)
    with pytest.raises(CellError, match=r"mars on small at 0.01/s, seed 1: ZeroDivisionError"):
        list(run_cells(broken, keyed(broken), num_workers=1))


def test_whole_results_are_kept_when_asked(experiment: Experiment, tmp_path: Path):
    key, cell = keyed(experiment)[0]
    record = run_cell(experiment.workload, cell, key, tmp_path / "runs")
    kept = read_result(tmp_path / "runs" / f"{key}.json")
    assert record.summary is not None
    assert kept.summary.sct_mean_s == pytest.approx(record.summary.sct_mean_s)
    assert len(kept.sessions) == 4
    assert kept.config["policy"] == "fcfs"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_policies_of_shipped_experiments_exist(path: Path):
    keys = [key for key, _ in keyed(load_experiment(path))]
    assert len(set(keys)) == len(keys)
