# SPDX-License-Identifier: Apache-2.0
"""What a request is to its session: the next step, a side call, another line, a new epoch."""

from __future__ import annotations

import json
from typing import Any

from mars.core import events as ev
from mars.core.model import Session
from mars.gateway.contexts import Contexts, Verdict
from mars.gateway.identity import peek
from mars.gateway.replies import CalledTool
from tests.gateway.conftest import Site

SYSTEM = {"role": "system", "content": "You are an agent. " * 250}
TASK = {"role": "user", "content": "Mend the test. " * 100}
TOOLS = [{"type": "function", "function": {"name": "bash", "description": "x" * 500}}]
NEXT, SIDE = Verdict(), Verdict(is_side=True)


def step(number: int) -> list[dict[str, Any]]:
    """One reply and the result of its tool."""
    call = {"id": f"call-{number}", "type": "function", "function": {"name": "bash"}}
    result = f"result {number} " * 300
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call-{number}", "content": result},
    ]


def history(num_steps: int) -> list[dict[str, Any]]:
    """The messages of a request after so many steps, without the system prompt."""
    return [TASK, *(message for i in range(num_steps) for message in step(i))]


COMPACTED = [SYSTEM, {"role": "user", "content": "What happened so far: much. " * 60}, *step(7)]


class Seen:
    """One session's requests, judged one after the other."""

    def __init__(self) -> None:
        self.contexts = Contexts()
        self.session = Session("s", 0.0)

    def ask(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = TOOLS,
        headers: dict[str, str] | None = None,
    ) -> Verdict:
        body = json.dumps({"messages": messages, "tools": tools or []}).encode()
        looked_at = peek(body)
        assert looked_at is not None
        return self.contexts.judge(self.session, headers or {}, looked_at, body)

    def steps(self, count: int, **options: Any) -> None:
        """That many ordinary steps, each checked to be one."""
        for i in range(count):
            assert self.ask([SYSTEM, *history(i)], **options) == NEXT
            self.contexts.replied("s", [CalledTool(f"call-{i}", "bash")])


def test_prompts_that_grow_and_retries_are_steps() -> None:
    seen = Seen()
    seen.steps(8)
    messages = [SYSTEM, *history(8)]
    assert seen.ask(messages) == seen.ask(messages) == NEXT


def test_a_moved_cache_mark_is_no_compaction() -> None:
    seen = Seen()
    for i in range(1, 6):
        messages = json.loads(json.dumps([SYSTEM, *history(i)]))
        messages[-1]["cache_control"] = {"type": "ephemeral"}
        assert seen.ask(messages) == NEXT


def test_a_prompt_that_begins_otherwise_starts_an_epoch_and_the_system_prompt_is_kept() -> None:
    seen = Seen()
    seen.steps(8)
    verdict = seen.ask(COMPACTED)
    assert verdict.reason == "prefix"
    system_tokens = len(json.dumps(SYSTEM)) // 4
    assert 0.7 * system_tokens < verdict.num_kept_tokens < 1.3 * system_tokens
    assert seen.ask([*COMPACTED, *step(8)]) == NEXT


def test_a_history_cut_in_its_middle_has_shrunk() -> None:
    seen = Seen()
    seen.steps(8)
    assert seen.ask([SYSTEM, *history(5), *step(7)]).reason == "shrunk"


def test_codex_says_itself_that_its_window_is_new() -> None:
    seen = Seen()
    seen.steps(3, headers={"x-codex-window-id": "t:0"})
    messages = [SYSTEM, *history(3)]
    assert seen.ask(messages, headers={"x-codex-window-id": "t:1"}).reason == "window"
    assert seen.ask(messages, headers={"x-codex-window-id": "t:1"}) == NEXT


def test_a_title_call_is_a_side_call_whenever_it_comes() -> None:
    title = [{"role": "user", "content": "a title, please " * 900}]
    before = Seen()
    before.ask(title, tools=None)  # before anything else it looks like the session itself
    before.steps(4)
    after = Seen()
    after.steps(3)
    assert after.ask(title, tools=None) == SIDE
    assert after.ask([SYSTEM, *history(3)]) == NEXT


def test_a_summary_that_extends_the_prompt_is_a_step_though_it_has_no_tools() -> None:
    seen = Seen()
    seen.steps(3)
    summary = [SYSTEM, *history(3), {"role": "user", "content": "sum it up"}]
    assert seen.ask(summary, tools=None) == NEXT
    assert seen.ask(COMPACTED).reason == "prefix"


def test_a_sub_agent_under_the_same_id_starts_no_epoch() -> None:
    other = [{"role": "system", "content": "You are a helper. " * 800}, TASK]
    waiting = Seen()
    waiting.steps(4)  # its call is unanswered: the sub-agent is what it waits for
    assert waiting.ask(other) == NEXT
    assert waiting.ask([*other, *step(20)]) == NEXT
    assert waiting.ask([SYSTEM, *history(4)]) == NEXT
    busy = Seen()
    busy.steps(4)
    busy.ask([SYSTEM, *history(4)])
    busy.session.num_open_turns = 1
    assert busy.ask(other) == NEXT
    busy.session.num_open_turns = 0
    assert busy.ask([SYSTEM, *history(5)]) == NEXT


def test_short_chats_and_deltas_start_no_epoch() -> None:
    seen = Seen()
    for text in ("one", "two", "three"):
        assert seen.ask([{"role": "user", "content": text * 500}], tools=None) == NEXT
    body = json.dumps({"input": "x" * 20_000, "previous_response_id": "resp_1"}).encode()
    looked_at = peek(body)
    assert looked_at is not None
    seen.steps(5)
    assert seen.contexts.judge(seen.session, {}, looked_at, body).reason is None


def test_ended_sessions_leave_nothing_behind() -> None:
    seen = Seen()
    seen.steps(2)
    seen.contexts.apply(ev.SessionEnded(time=1.0, session_id="s", reason="idle"))
    assert seen.contexts._contexts == {}


async def test_a_compaction_is_told_and_shrinks_what_the_session_counts_for(site: Site) -> None:
    for i in range(6):
        await site.chat("s", messages=[SYSTEM, *history(i)], tools=TOOLS)
    await site.chat("s", messages=COMPACTED, tools=TOOLS)
    reset = await site.event("context_reset", session_id="s", reason="prefix")
    assert isinstance(reset, ev.ContextReset)
    assert reset.epoch == 1
    assert site.gateway.admission.active.sessions["s"].epoch == 1


async def test_a_side_call_goes_to_the_engine_as_nobodys_step(site: Site) -> None:
    await site.chat(
        "s", messages=[SYSTEM, TASK], tools=TOOLS, fake_tools=[{"id": "c", "name": "b"}]
    )
    session = site.gateway.admission.active.sessions["s"]
    before = (session.num_turns, session.context_tokens, session.last_turn_finished_at)
    await site.chat("s", messages=[{"role": "user", "content": "a title " * 2000}])
    assert (session.num_turns, session.context_tokens, session.last_turn_finished_at) == before
    assert session.num_open_turns == 0
    assert [r.session_id for r in site.engine.seen] == ["s", "s/side"]
    assert not site.events("tool_finished")
