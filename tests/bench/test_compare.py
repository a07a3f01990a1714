# SPDX-License-Identifier: Apache-2.0
from mars.bench.compare import Run, markdown, rows, speed_up, speed_up_text
from mars.bench.metrics import summarise
from mars.bench.result import Result, RunTotals, SessionRecord


def _run(label: str, scts: list[float | None], gpu_busy: float | None = None) -> Run:
    sessions = [
        SessionRecord(session_id=f"s{i}", arrival_s=0.0, sct_s=sct, ideal_s=10.0)
        for i, sct in enumerate(scts)
    ]
    summary = summarise(sessions, RunTotals(duration_s=100.0, preemptions=3, gpu_busy=gpu_busy))
    return Run(label, Result(summary=summary, sessions=sessions))


FCFS = _run("fcfs", [40.0, 60.0, 80.0, 100.0])
MARS = _run("mars", [20.0, 30.0, 40.0, 50.0], gpu_busy=0.5)


def test_the_better_run_is_marked_in_the_direction_of_each_measure() -> None:
    best = {row.label: row.best for row in rows([FCFS, MARS])}
    assert best["Completion time, mean (s)"] == {1}
    assert best["Goodput@3 (sessions/h)"] == {1}
    assert best["Preemptions"] == frozenset()  # equal
    assert best["GPU busy"] == frozenset()  # neither way is better


def test_unknown_values_show_as_a_dash_and_what_nobody_knows_not_at_all() -> None:
    cells = {row.label: row.cells for row in rows([FCFS, MARS])}
    assert cells["GPU busy"] == ("-", "50%")
    assert "TTFT, P99 (s)" not in cells
    assert cells["Completion time, mean (s)"] == ("70.0", "35.0")


def test_goodput_is_unknown_where_no_time_alone_is() -> None:
    sessions = [SessionRecord(session_id="s", arrival_s=0.0, sct_s=1.0)]
    summary = summarise(sessions, RunTotals(duration_s=10.0))
    labels = {row.label for row in rows([Run("r", Result(summary=summary, sessions=sessions))])}
    assert "Goodput@3 (sessions/h)" not in labels


def test_speed_up_is_paired_by_session() -> None:
    found = speed_up(MARS, FCFS)
    assert found is not None
    assert found.estimate == 2.0
    assert "2.00x shorter than fcfs" in speed_up_text(MARS, FCFS)


def test_sessions_that_failed_in_one_run_do_not_count() -> None:
    partly = _run("cut", [20.0, None, None, None])
    found = speed_up(partly, FCFS)
    assert found is not None
    assert (found.estimate, found.num_samples) == (2.0, 1)
    assert "too few" in speed_up_text(partly, FCFS)
    assert speed_up(_run("none", [None] * 4), FCFS) is None
    assert "no finished session in common" in speed_up_text(_run("none", [None] * 4), FCFS)


def test_markdown_has_a_column_per_run() -> None:
    table = markdown([FCFS, MARS]).splitlines()
    assert table[0] == "| | fcfs | mars |"
    assert "| Completion time, mean (s) | 70.0 | **35.0** |" in table
