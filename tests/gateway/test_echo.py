# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from mars.gateway.echo import EchoIndex
from mars.gateway.identity import peek
from mars.gateway.replies import ReplyReader
from tests.gateway.conftest import Site

ASK = {"role": "user", "content": "the same task for everybody"}


def reply(call_ids: list[str], text: str = "", response_id: str | None = None) -> ReplyReader:
    calls = [{"id": call_id, "function": {"name": "bash"}} for call_id in call_ids]
    reader = ReplyReader(is_stream=False)
    reader.feed(
        msgspec.json.encode({"choices": [{"message": {"content": text, "tool_calls": calls}}]})
    )
    reader.finish()
    reader.response_id = response_id
    return reader


def find(index: EchoIndex, **body: Any) -> str | None:
    looked_at = peek(msgspec.json.encode(body))
    assert looked_at is not None
    return index.find(looked_at)


ECHOES: list[dict[str, Any]] = [
    {"messages": [ASK, {"role": "tool", "tool_call_id": "c1", "content": "ok"}]},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}]},
    {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c1"}]}]},
    {"input": [{"type": "function_call_output", "call_id": "c1", "output": "ok"}]},
    {"previous_response_id": "resp_1", "input": "go on"},
    {"messages": [ASK, {"role": "assistant", "content": " I did it.\n"}, ASK]},
    {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "I did it."}]}]},
]


@pytest.mark.parametrize("body", ECHOES)
def test_a_session_is_known_by_what_it_echoes_in_every_api(body: dict[str, Any]) -> None:
    index = EchoIndex()
    index.remember("a", reply(["c1"], "I did it.", "resp_1"))
    index.remember("b", reply(["c2"], "Something else.", "resp_2"))
    assert find(index, **body) == "a"


def test_equal_prompts_do_not_make_one_session() -> None:
    index = EchoIndex()
    index.remember("a", reply(["c1"]))
    assert find(index, messages=[ASK]) is None


def test_what_two_sessions_both_said_decides_nothing() -> None:
    index = EchoIndex()
    index.remember("a", reply(["functions.bash:0"], "first a"))
    index.remember("b", reply(["functions.bash:0"], "first b"))
    index.remember("a", reply(["functions.bash:0"]))  # and it stays undecided
    tool = {"role": "tool", "tool_call_id": "functions.bash:0"}
    assert find(index, messages=[tool]) is None
    assert find(index, messages=[{"role": "assistant", "content": "first b"}, tool]) == "b"


def test_text_that_only_looks_like_an_echo_is_none() -> None:
    index = EchoIndex()
    index.remember("a", reply(["c1"]))
    quoted = {"role": "user", "content": '{"tool_call_id": "c1"}'}
    assert find(index, messages=[quoted]) is None


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    index = EchoIndex(max_keys=10)
    for i in range(100):
        index.remember(f"s{i}", reply([f"c{i}"]))
    assert len(index) == 10
    assert find(index, messages=[{"role": "tool", "tool_call_id": "c99"}]) == "s99"
    assert find(index, messages=[{"role": "tool", "tool_call_id": "c0"}]) is None


async def ask(site: Site, messages: list[Any], **fields: Any) -> str:
    """One chat without any id; returns the session that the engine was told."""
    status, _ = await site.chat(messages=messages, **fields)
    assert status == 200
    session_id = site.engine.seen[-1].session_id
    assert session_id is not None
    return session_id


@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_that_sends_no_id_is_one_session_until_its_final_answer(
    site: Site, stream: bool
) -> None:
    answers = {}
    for name in ("one", "two"):  # with the very same prompt
        tools = [{"id": f"call-{name}", "name": "bash"}]
        answers[name] = await ask(site, [ASK], fake_tools=tools, stream=stream)
    assert answers["one"] != answers["two"]
    done = [ASK, {"role": "tool", "tool_call_id": "call-one", "content": "ok"}]
    assert await ask(site, done, fake_text="All done.", stream=stream) == answers["one"]
    await site.event("session_ended", session_id=answers["one"], reason="final_answer", num_turns=2)
    assert [a["session_id"] for a in (await site.state())["active"]] == [answers["two"]]
    later = [ASK, {"role": "assistant", "content": "All done."}, ASK]
    assert await ask(site, later, stream=stream) == answers["one"]
    await site.event("session_arrived", session_id=answers["one"], generation=1)


def test_ids_within_text_are_the_last_to_be_asked() -> None:
    index = EchoIndex()
    index.remember("s", reply(["chatcmpl-tool-0123abcd"]))
    told = "Calling tools: [{'id': 'chatcmpl-tool-0123abcd', 'function': 'bash'}]"
    body = peek(msgspec.json.encode({"messages": [{"role": "assistant", "content": told}]}))
    assert body is not None
    assert index.find(body) == "s"


DRAFT = "Begin.\n\npoem.txt\n```\nThe first line of a poem.\n```\nThat is the file."
HISTORY = f"# USER\nDo the work.\n# ASSISTANT\n{DRAFT}\n# USER\nI updated the files.\n"
SUMMARISE = [{"role": "system", "content": "Summarise."}, {"role": "user", "content": HISTORY}]


def quoted(index: EchoIndex, **body: Any) -> str | None:
    looked_at = peek(msgspec.json.encode(body))
    assert looked_at is not None
    assert index.find(looked_at) is None
    return index.quoted(looked_at)


def test_a_summary_is_known_by_the_reply_that_it_quotes() -> None:
    index = EchoIndex()
    index.remember("a", reply([], DRAFT))
    index.remember("b", reply([], DRAFT.replace("first", "second")))
    index.remember("c", reply([], "Begin.\n\nNothing else, but at some length that will do."))
    assert quoted(index, messages=SUMMARISE) == "a"
    parts = [{"type": "text", "text": HISTORY}]
    assert quoted(index, messages=[{"role": "user", "content": parts}]) == "a"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": SUMMARISE, "tools": [{"name": "bash"}]},
        {"messages": [*SUMMARISE, {"role": "assistant", "content": "I see."}, ASK]},
        {"messages": [{"role": "user", "content": HISTORY.replace("poem.txt", "prose.txt")}]},
        {"messages": [ASK]},
    ],
)
def test_what_is_about_a_reply_is_not_always_a_side_call(body: dict[str, Any]) -> None:
    index = EchoIndex()
    index.remember("a", reply([], DRAFT))
    assert quoted(index, **body) is None


def test_a_quotation_of_what_several_said_or_of_little_decides_nothing() -> None:
    index = EchoIndex()
    for name in ("a", "b"):
        index.remember(name, reply([], DRAFT))
    assert quoted(index, messages=SUMMARISE) is None
    index.remember("c", reply([], "Ok, I will."))
    assert quoted(index, messages=[{"role": "user", "content": "Ok, I will."}]) is None
    other = EchoIndex()
    other.remember("a", reply([], DRAFT))
    other.remember("b", reply([], "Another reply, which is long enough to be known again."))
    both = f"{HISTORY}\nAnother reply, which is long enough to be known again."
    assert quoted(other, messages=[{"role": "user", "content": both}]) is None


async def test_an_agent_without_ids_and_tools_is_one_session_with_its_summaries(
    site: Site,
) -> None:
    """As aider does it: other messages move in between, and the history is summarised."""
    first = await ask(site, [ASK], fake_text=DRAFT)
    files = {"role": "user", "content": "poem.txt has changed"}
    kept = [ASK, {"role": "assistant", "content": f"{DRAFT}\n"}, files]
    assert await ask(site, kept, fake_text="Now it is done, and there is no more.") == first
    await site.event("session_ended", session_id=first, generation=1)
    assert await ask(site, SUMMARISE) == f"{first}/side"
    await site.event("session_ended", session_id=first, generation=2, reason="single_turn")
    assert not (await site.state())["active"]


async def test_equal_openings_with_a_turn_open_stay_two_sessions(site: Site) -> None:
    """Also when both then get the same reply: nobody can tell whose the next request is."""
    site.engine.pause()
    both = [asyncio.create_task(site.chat(messages=[ASK], fake_text=DRAFT)) for _ in range(2)]
    await site.until(lambda engine: len(engine.seen) == 2)
    names = {seen.session_id for seen in site.engine.seen}
    assert len(names) == 2
    site.engine.resume()
    await asyncio.gather(*both)
    going_on = [ASK, {"role": "assistant", "content": DRAFT}, ASK]
    assert await ask(site, going_on) not in names
    assert await ask(site, SUMMARISE) not in {*names, *(f"{name}/side" for name in names)}
