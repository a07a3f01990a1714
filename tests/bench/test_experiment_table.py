# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mars.bench.experiment_plan import Experiment
from mars.bench.experiment_store import CellRecord
from mars.bench.experiment_table import MEASURES, UnequalError, knee_per_s, points
from mars.bench.metrics import summarise
from mars.bench.result import RunTotals, SessionRecord, Summary
from tests.bench.test_experiment_plan import TINY, load

SEEDS = [1, 2, 3]


def summary(sct_s: float, **changes: Any) -> Summary:
    session = SessionRecord(session_id="a", arrival_s=0.0, sct_s=sct_s, ideal_s=1.0)
    made = summarise([session], RunTotals(duration_s=sct_s, computed_tokens=100))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def cell(contender: str, cap: int | None, seed: int, sct_s: float, **fields: Any) -> CellRecord:
    known: dict[str, Any] = {"rate_per_s": 0.01, "sessions_hash": f"h{seed}"} | fields
    known.setdefault("summary", summary(sct_s))
    return CellRecord(
        key=f"{contender}-{cap}-{seed}-{known['rate_per_s']}",
        machine="small",
        contender=contender,
        cap=cap,
        seed=seed,
        policy=contender,
        admission="none",
        tool_policy="fifo",
        **known,
    )


def ran(**fields: Any) -> list[CellRecord]:
    """Completion times 10, 20, 30 by seed for FCFS; cap 2 is the best; ours takes half."""
    factors = {("fcfs", None): 1.0, ("fcfs", 1): 0.9, ("fcfs", 2): 0.7, ("mars", None): 0.5}
    return [
        cell(name, cap, seed, 10.0 * seed * factor, **fields)
        for seed in SEEDS
        for (name, cap), factor in factors.items()
    ]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load(TINY, tmp_path)


def test_ratios_say_how_many_times_better_in_either_direction(experiment: Experiment):
    (point,) = points(experiment, ran(), SEEDS)
    mars = point.own("mars")
    assert mars is not None
    assert point.is_low
    mean = mars.to_reference["sct_mean_s"]
    assert mean.estimate == pytest.approx(2.0)
    assert mean.num_samples == 3
    # Half the time, twice the sessions per hour: both are twice as good.
    assert mars.to_reference["sessions_per_h"].estimate == pytest.approx(2.0)
    assert mars.interval("sct_mean_s").estimate == pytest.approx(10.0)  # type: ignore[union-attr]


def test_the_oracle_takes_the_cap_with_the_lowest_mean_of_each_swept_contender(
    experiment: Experiment,
):
    (point,) = points(experiment, ran(), SEEDS)
    best = point.best_cap("fcfs")
    assert best is not None
    assert best.cap == 2
    assert point.best_cap("mars") is None
    assert [e.label for e in point.shown] == ["fcfs", "fcfs, cap 2", "mars"]
    mars = point.own("mars")
    assert mars is not None
    assert mars.to_best_cap["fcfs"]["sct_mean_s"].estimate == pytest.approx(1.4)


def test_sessions_that_differ_are_refused(experiment: Experiment):
    cells = ran()
    cells[-1].sessions_hash = "other"
    with pytest.raises(UnequalError, match="ran different sessions on small at 0.01/s, seed 3"):
        points(experiment, cells, SEEDS)


def test_only_seeds_that_everyone_has_finished_are_compared(experiment: Experiment):
    cells = [c for c in ran() if (c.contender, c.cap, c.seed) != ("fcfs", 1, 2)]
    (point,) = points(experiment, cells, SEEDS)
    assert point.seeds == [1, 3]
    mars = point.own("mars")
    assert mars is not None
    assert mars.values["sct_mean_s"] == [5.0, 15.0]
    assert mars.to_reference["sct_mean_s"].low is None  # two pairs say nothing of their spread
    mean = mars.interval("sct_mean_s")
    assert mean is not None
    assert (mean.estimate, mean.low) == (10.0, None)
    assert points(experiment, cells, [2]) == []


def test_who_got_stuck_has_no_numbers_and_is_no_best_cap(experiment: Experiment):
    cells = ran()
    for one in cells:
        if one.cap == 2 and one.seed == 3:
            one.summary, one.error = None, "never served"
    (point,) = points(experiment, cells, SEEDS)
    stuck = next(e for e in point.entries if e.cap == 2)
    assert stuck.interval("sct_mean_s") is None
    assert stuck.errors == ["seed 3: never served"]
    best = point.best_cap("fcfs")
    assert best is not None
    assert best.cap == 1


def test_no_ratio_is_made_of_a_zero(experiment: Experiment):
    cells = ran()
    for one in cells:
        assert one.summary is not None
        one.summary.goodput = {"2": 0.0, "3": 0.0, "5": 1.0}
    (point,) = points(experiment, cells, SEEDS)
    mars = point.own("mars")
    assert mars is not None
    assert "goodput_3" not in mars.to_reference
    assert mars.to_reference["goodput_5"].estimate == pytest.approx(1.0)


def test_the_knee_lies_between_loads(experiment: Experiment):
    low = [cell(c.contender, c.cap, c.seed, 2.0) for c in ran()]
    high = [cell(c.contender, c.cap, c.seed, 6.0, rate_per_s=0.5) for c in ran()]
    found = points(experiment, low + high, SEEDS)
    assert [p.is_low for p in found] == [True, False]
    # Slowdown 2 at 0.01/s and 6 at 0.5/s: 3 is a quarter of the way.
    assert knee_per_s(found, "fcfs", is_capped=False) == pytest.approx(0.01 + 0.49 / 4)
    assert knee_per_s(found, "mars", is_capped=True) is None
    assert knee_per_s(found[:1], "fcfs", is_capped=False) is None


def test_every_asked_measure_is_there():
    asked = {"sct_mean_s", "sct_p50_s", "sct_p90_s", "sct_p95_s", "sct_p99_s", "slowdown_mean"}
    asked |= {"goodput_2", "goodput_3", "goodput_5", "sessions_per_h", "ttft_p99_s"}
    asked |= {"prefix_hit_rate", "recomputed_tokens", "preemptions", "fairness_jain"}
    assert asked <= set(MEASURES)
    read = {name: m.read(summary(4.0, recomputed_tokens=25)) for name, m in MEASURES.items()}
    assert read["recompute_share"] == 0.25
    assert read["goodput_5"] == pytest.approx(900.0)
    assert read["goodput_3"] == 0.0
