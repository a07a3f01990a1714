# SPDX-License-Identifier: Apache-2.0
"""vLLM itself, with the plug-in, dies in the middle of turns.

``benchmarks/faults.py --vllm`` starts vLLM again; here the small engine takes its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from mars.testing import faults_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]


async def test_killed_in_the_middle_of_turns(folder: Path) -> None:
    out = await faults_vllm.vllm_killed(folder, is_replaced=True)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw["200, whole"] == 6
    assert sum(out.clients_saw.values()) == 9
    assert out.noted["engine_restarts"] == 1
    assert "engine telemetry is stale" in out.noted["alarm"]
