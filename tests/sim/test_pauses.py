# SPDX-License-Identifier: Apache-2.0
"""The explicit pause in virtual time: at turn boundaries, bounded, and nobody is lost."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from mars.core.pauses import LIMIT_S
from mars.sim.run import SimConfig, simulate
from sim.workloads import Shape

BUSY = Shape(3, num_sessions=24, rate=4.0, growth_tokens=4000, num_turns=6)


@pytest.mark.parametrize(
    ("admission", "options"), [("thunderagent", {}), ("concur:24", {"interval_s": 0.2})]
)
@pytest.mark.parametrize("policy", ["fcfs", "mars"])
def test_sessions_are_paused_between_turns_and_all_of_them_finish(
    admission: str, options: dict[str, Any], policy: str
) -> None:
    told: dict[str, list[Any]] = defaultdict(list)

    def take(event: Any) -> None:
        if hasattr(event, "session_id"):
            told[event.session_id].append(event)

    trace = BUSY.trace()
    config = SimConfig(
        policy=policy, admission=admission, admission_options=options, kv_tokens=24_000
    )
    result = simulate(trace, config, sink=take)
    assert all(record.sct_s is not None for record in result.sessions)
    num_pauses = 0
    for events in told.values():
        is_open = is_paused = False
        paused_s = 0.0
        for event in events:
            if event.kind == "turn_submitted":
                assert not is_paused, "a paused session was served"
                is_open = True
            elif event.kind == "turn_finished":
                is_open = False
            elif event.kind == "session_paused":
                assert not is_open, "paused inside a turn"
                is_paused = True
                num_pauses += 1
            elif event.kind == "session_resumed":
                is_paused = False
                paused_s += event.paused_s
        assert paused_s <= LIMIT_S + 1.0
    assert num_pauses > 0 or policy == "mars"  # whose turns wait in the engine instead
    for record in result.sessions:
        parts = record.held_s + record.queue_s + record.prefill_s + record.decode_s
        parts += record.tool_wait_s + record.tool_s + record.gap_s
        assert parts == pytest.approx(record.sct_s)
