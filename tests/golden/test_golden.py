# SPDX-License-Identifier: Apache-2.0
"""Results that must not move: one fixed trace, the reference policy, every byte.

A change here is a change of what the simulator says; the agreement tests tell whether vLLM
changed with it. Write them anew with ``python tests/golden/test_golden.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mars.bench.result import encode_result
from mars.sim.run import SimConfig, simulate
from mars.traces.schema import TraceSession, TraceTool, TraceTurn

FOLDER = Path(__file__).parent
CONFIGS = {
    "fcfs-sync": SimConfig(kv_tokens=30_000, num_cpus=2, is_async=False),
    "fcfs-async": SimConfig(kv_tokens=30_000, num_cpus=2, is_async=True),
    "fcfs-cap": SimConfig(kv_tokens=30_000, num_cpus=2, admission="cap:3"),
}


def trace() -> list[TraceSession]:
    """Ten sessions of three turns, without a random number."""
    return [
        TraceSession(
            session_id=f"s{index}",
            arrival_s=0.7 * index,
            turns=tuple(
                TraceTurn(
                    prompt_tokens=1800 * turn + 260 * index,
                    output_tokens=40 + 7 * index,
                    shared_prefix=("system", 500) if index % 3 == 0 else None,
                    tools=(TraceTool(name="run", duration_s=0.4 * turn, cpu_s=0.3 * turn),),
                    gap_s=0.05,
                )
                for turn in (1, 2, 3)
            ),
        )
        for index in range(10)
    ]


def result(name: str) -> bytes:
    return encode_result(simulate(trace(), CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_results_are_as_they_were(name: str) -> None:
    assert result(name) == (FOLDER / f"{name}.json").read_bytes()


if __name__ == "__main__":
    for each in CONFIGS:
        (FOLDER / f"{each}.json").write_bytes(result(each))
