# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from mars.bench.agreement import Agreement, prepare, rows, simulated
from mars.bench.scenario import Contestant, Machine, Workload

FCFS = Contestant(label="fcfs", policy="fcfs")


def both(factor: float) -> Agreement:
    workload = Workload(trace="public:swe-agent", sessions=3, turns=3)
    experiment = prepare(workload, Machine(profile="h100-qwen3-coder-30b", tool_slots=3), [FCFS])
    assert all(t.cpu_s == 0.0 for s in experiment.sessions for u in s.turns for t in u.tools)
    one = simulated(experiment, FCFS)
    other = msgspec.json.decode(msgspec.json.encode(one), type=type(one))
    assert other.summary.sct_mean_s is not None
    other.summary.sct_mean_s *= factor
    other.sessions[1].sct_s = (other.sessions[1].sct_s or 0.0) * 1.2
    return Agreement(FCFS, other, one)


@pytest.mark.parametrize(("factor", "verdict"), [(1.005, "ok"), (0.98, "OVER")])
def test_differences_are_judged(factor: float, verdict: str):
    (row,) = rows([both(factor)])
    assert row[3] == f"{factor - 1:+.2%} {verdict}"
    assert row[4] == "+0.00% ok"
    assert row[5] == "20.0%"
