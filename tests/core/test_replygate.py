# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mars.core.model import Load, Session, ToolCall
from mars.core.policy import tool_policies
from mars.core.replygate import KeptReply, ReplyGate, Swamped

CALM = Load(0.0, cpu_cores=2, cpu_pressure=0.0)
SWAMPED = Load(0.0, cpu_cores=2, cpu_pressure=0.9)


def reply(session_id: str, queued_at: float) -> KeptReply:
    call = ToolCall(f"{session_id}-call", session_id, "bash", queued_at)
    return KeptReply(Session(session_id, 0.0), [call])


def test_nothing_waits_on_calm_or_unknown_cpus_however_many_tools_run() -> None:
    gate = ReplyGate(tool_policies.create("fifo"), 2)
    assert not gate.is_closed(CALM, 50, 0.0)
    assert not gate.is_closed(Load(0.0), 50, 0.0)


def test_on_swamped_cpus_a_reply_waits_for_a_slot() -> None:
    gate = ReplyGate(tool_policies.create("fifo"), 2)
    assert not gate.is_closed(SWAMPED, 1, 0.0)
    assert gate.is_closed(SWAMPED, 2, 0.0)


def test_replies_go_in_the_order_of_the_tool_policy_as_slots_come_free() -> None:
    gate = ReplyGate(tool_policies.create("fifo"), 2)
    late, early = reply("late", 5.0), reply("early", 1.0)
    for kept in (late, early):
        gate.asked(kept.session, kept.calls, 0.0)
        gate.keep(kept)
    assert gate.opened(SWAMPED, 2, 6.0) == []
    assert gate.opened(SWAMPED, 1, 6.0) == [early]
    assert gate.opened(CALM, 9, 7.0) == [late]  # relieved: nobody waits any more


def test_swamped_has_hysteresis_and_falls_back_on_usage() -> None:
    swamped = Swamped()
    pressures = [(0.4, False), (0.6, True), (0.4, True), (0.1, False)]
    for pressure, expected in pressures:
        assert swamped.update(Load(0.0, cpu_pressure=pressure)) is expected
    assert swamped.update(Load(0.0, cpu_usage=0.99))
    assert not swamped.update(Load(0.0))
