# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from mars.core import events as ev
from mars.gateway.replies import CalledTool
from mars.gateway.toolwatch import BELIEVED_S, ToolWatch
from tests.gateway.conftest import Site
from tests.gateway.test_app import post_events, tool_events

BASH, EDIT = CalledTool("c1", "bash"), CalledTool("c2", "edit")


class Watched:
    """A tool watch with a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 10.0
        self.events: list[Any] = []
        self.watch = ToolWatch(lambda event, source: self.events.append(event), lambda: self.now)

    def told(self) -> list[tuple[str, str]]:
        return [(e.kind, e.tool_call_id) for e in self.events]


def test_a_tool_runs_from_the_reply_to_the_request_that_names_it() -> None:
    seen = Watched()
    seen.watch.replied("s", [BASH, EDIT])
    seen.now += 4.0
    seen.watch.requested("s", b'{"role":"tool","tool_call_id":"c1"}')
    assert seen.told() == [
        ("tool_started", "c1"),
        ("tool_started", "c2"),
        ("tool_finished", "c1"),
    ]
    assert seen.events[-1].duration_s == 4.0
    assert seen.events[-1].tool_name == "bash"


def test_a_side_call_ends_no_tool() -> None:
    seen = Watched()
    seen.watch.replied("s", [BASH])
    seen.watch.requested("s", b'{"messages":[{"content":"make a title"}]}')
    seen.watch.requested("other", b"c1")
    assert seen.told() == [("tool_started", "c1")]


def test_a_session_whose_tools_are_reported_is_left_to_its_reporter() -> None:
    seen = Watched()
    seen.watch.replied("s", [BASH])
    queued = ev.ToolQueued(time=10.0, session_id="s", tool_call_id="own-id", tool_name="bash")
    seen.watch.apply(queued, "tools")
    assert seen.told() == [("tool_started", "c1"), ("tool_finished", "c1")]
    seen.watch.replied("s", [EDIT])
    assert len(seen.events) == 2


def test_a_report_under_the_same_id_takes_the_call_over() -> None:
    seen = Watched()
    seen.watch.replied("s", [BASH])
    queued = ev.ToolQueued(time=10.0, session_id="s", tool_call_id="c1", tool_name="bash")
    seen.watch.apply(queued, "tools")
    assert seen.told() == [("tool_started", "c1")]


def test_ended_sessions_leave_nothing_behind() -> None:
    seen = Watched()
    seen.watch.replied("s", [BASH])
    seen.watch.apply(ev.SessionEnded(time=11.0, session_id="s", reason="idle"), "gateway")
    assert (seen.watch._open, seen.watch._reported) == ({}, set())


async def test_the_phase_of_an_unreported_tool_is_seen_and_a_title_call_does_not_end_it(
    site: Site,
) -> None:
    tools = [{"id": "call-1", "name": "bash"}]
    await site.chat("s", fake_tools=tools)
    active = (await site.state())["active"][0]
    assert (active["phase"], active["tool_name"]) == ("tool", "bash")
    await site.chat("s", messages=[{"role": "user", "content": "a title, please"}])
    assert (await site.state())["active"][0]["phase"] == "tool"
    await site.chat("s", messages=[{"role": "tool", "tool_call_id": "call-1"}])
    active = (await site.state())["active"][0]
    assert (active["phase"], active["tool_name"]) == ("idle", None)
    records = site.gateway.hub.bus.reader(since=0).read(1000)
    kinds = [(r.event.kind, r.source) for r in records if r.event.kind.startswith("tool_")]
    assert kinds == [("tool_started", "inferred"), ("tool_finished", "inferred")]


async def test_a_report_after_the_inference_leaves_one_tool_in_sight(site: Site) -> None:
    await site.chat("s", fake_tools=[{"id": "call-1", "name": "bash"}])
    queued, started, finished = tool_events(tool_name="pytest")
    await post_events(site, [queued, started])
    active = (await site.state())["active"][0]
    assert (active["phase"], active["tool_name"]) == ("tool", "pytest")
    await post_events(site, [finished])
    assert (await site.state())["active"][0]["phase"] == "idle"


def test_calls_that_nobody_ends_do_not_run_for_ever() -> None:
    seen = Watched()
    seen.watch.replied("gone", [BASH])
    seen.now += BELIEVED_S - 1.0
    seen.watch.replied("here", [EDIT])
    assert seen.watch.num_running == 2
    seen.now += 2.0
    assert seen.watch.num_running == 1
