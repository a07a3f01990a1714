# SPDX-License-Identifier: Apache-2.0
"""Each public form, read from a small real cut; each broken line gives one error with its place."""

from __future__ import annotations

import lzma
from pathlib import Path

import msgspec
import pytest

from mars.traces.content import common_prefix_tokens, prompt_segments, reply_segment
from mars.traces.errors import TraceError
from mars.traces.export import write_mooncake
from mars.traces.importers import FORMATS, detect, read_any
from mars.traces.importers.thunderagent import read_thunderagent
from mars.traces.importers.weka import read_weka
from mars.traces.io import public_names, read_trace
from mars.traces.schema import (
    TraceSession,
    TraceTurn,
    decode_session,
    encode_session,
    require_turns,
)

FIXTURES = Path(__file__).parent / "fixtures"
FILES = {
    "weka.raw.jsonl.xz": "weka",
    "weka.replay.jsonl.xz": "weka",
    "thunderagent.replay.jsonl.xz": "thunderagent",
    "mooncake.jsonl": "mooncake",
    "azure.csv": "azure",
    "tracelab.jsonl": "tracelab",
    "aiperf.jsonl": "aiperf",
    "mas_task.jsonl": "mas_task",
    "miniswe.jsonl.xz": "miniswe",
}


def read_fixture(name: str) -> list[TraceSession]:
    return list(read_any(FIXTURES / name))


@pytest.mark.parametrize(("name", "form"), FILES.items())
def test_forms_are_recognised_and_survive_our_own(name: str, form: str) -> None:
    assert detect(FIXTURES / name) == form
    sessions = read_fixture(name)
    assert sessions
    assert len({session.session_id for session in sessions}) == len(sessions)
    for session in sessions:
        assert decode_session(encode_session(session)) == session


@pytest.mark.parametrize("name", FILES)
def test_imports_repeat_exactly(name: str) -> None:
    assert read_fixture(name) == read_fixture(name)


def test_every_form_has_a_fixture() -> None:
    assert set(FILES.values()) | {"mars"} == set(FORMATS)


def test_weka_twins_merge_to_the_replay_form() -> None:
    raw, replay = read_fixture("weka.raw.jsonl.xz"), read_fixture("weka.replay.jsonl.xz")
    assert [session.turns for session in raw] == [session.turns for session in replay]
    assert [len(session.turns) for session in raw] == [14, 9, 13]


def test_weka_gaps_become_tools_up_to_the_cap_and_lose_nothing() -> None:
    path = FIXTURES / "weka.replay.jsonl.xz"
    for capped, free in zip(
        read_weka(path, tool_cap_s=5.0), read_weka(path, tool_cap_s=1e9), strict=True
    ):
        for a, b in zip(capped.turns, free.turns, strict=True):
            waited_s = a.gap_s + sum(tool.duration_s for tool in a.tools)
            assert all(tool.duration_s <= 5.0 for tool in a.tools)
            assert waited_s == pytest.approx(b.gap_s + sum(t.duration_s for t in b.tools))
    assert any(tool.duration_s > 60.0 for turn in free.turns for tool in turn.tools)


def test_weka_sessions_share_their_system_prefix_and_grow() -> None:
    first, second, _ = read_fixture("weka.replay.jsonl.xz")
    assert common_prefix_tokens(prompt_segments(first, 0), prompt_segments(second, 0)) >= 64
    said = [*prompt_segments(first, 0), reply_segment(first, 0)]
    assert common_prefix_tokens(said, prompt_segments(first, 1)) >= first.turns[0].prompt_tokens


def test_weka_subagents_are_sessions_with_a_parent() -> None:
    path = FIXTURES / "weka.raw.jsonl.xz"
    children = [s for s in read_weka(path, include_subagents=True) if s.parent is not None]
    assert [child.parent for child in children] == ["trace_0287"]
    assert children[0].session_id == "trace_0287/agent_001"
    assert children[0].arrival_s > 0.0
    assert len(children[0].turns) > 1


def test_thunderagent_joins_text_and_drops_a_cut_last_turn() -> None:
    sessions = {
        s.session_id: s
        for s in read_thunderagent(
            FIXTURES / "thunderagent.replay.jsonl.xz", FIXTURES / "thunderagent.text.jsonl.xz"
        )
    }
    told = sessions["django__django-14672@bs4"]
    assert told.task == "django__django-14672"
    assert told.turns[0].text is not None
    assert told.turns[0].text.startswith("\n<think>")
    assert told.turns[0].tools[0].command == "str_replace_editor view /testbed"
    assert told.turns[0].tools[0].name == "read"
    assert {"python", "edit", "submit"} <= {t.name for turn in told.turns for t in turn.tools}
    assert sessions["django__django-14534@bs4"].turns[0].text is None
    assert len(sessions["django__django-15738@bs32"].turns) == 137


def test_thunderagent_waits_add_up_to_the_recorded_gap() -> None:
    session = read_fixture("thunderagent.replay.jsonl.xz")[0]
    assert session.session_id == "django__django-14534@bs4"
    turn = session.turns[0]
    assert turn.tools[0].duration_s == 0.1466
    assert turn.gap_s + turn.tools[0].duration_s == pytest.approx(0.3558, abs=1e-4)


def test_modelled_costs_follow_the_class() -> None:
    for session in read_fixture("thunderagent.replay.jsonl.xz"):
        for tool in (tool for turn in session.turns for tool in turn.tools):
            assert 0.0 <= tool.cpu_s <= 1.6 * tool.duration_s + 1e-3
            if tool.name in {"read", "edit", "submit"}:
                assert tool.cpu_s <= 0.1
                assert tool.peak_bytes == 0
            if tool.name == "python" and tool.duration_s > 0.2:
                assert tool.cpu_s == pytest.approx(0.93 * tool.duration_s, abs=1e-3)


def test_mooncake_requests_keep_arrival_and_sharing() -> None:
    sessions = read_fixture("mooncake.jsonl")
    assert len(sessions) == 18
    assert sessions[0].turns[0].prompt_tokens == 40160
    shared = [
        common_prefix_tokens(prompt_segments(a, 0), prompt_segments(b, 0))
        for i, a in enumerate(sessions)
        for b in sessions[:i]
    ]
    assert max(shared) >= 512
    assert min(shared) == 0


def test_azure_arrivals_count_from_the_first_request() -> None:
    first, second = read_fixture("azure.csv")[:2]
    assert (first.arrival_s, second.arrival_s) == (0.0, pytest.approx(4.314579))
    assert (second.turns[0].prompt_tokens, second.turns[0].output_tokens) == (396, 109)


def test_tracelab_rounds_become_sessions_with_measured_tools() -> None:
    codex, claude = read_fixture("tracelab.jsonl")
    assert codex.session_id.startswith("codex:")
    assert [len(codex.turns), len(claude.turns)] == [9, 10]
    first = claude.turns[0]
    assert first.shared_prefix is not None
    assert first.shared_prefix[1] == 27217
    # Bash ran 40:30.836-40:31.696, WebSearch 40:31.647-40:50.938: they overlapped by 49 ms.
    assert [tool.duration_s for tool in first.tools] == [0.86, 19.242]
    # The user came back 19.913 s after the last word of round 4.
    assert claude.turns[4].gap_s == pytest.approx(19.913)
    # Round 5 of the other session is shorter than round 4: only the cached prefix is reused.
    assert codex.turns[5].reused_tokens == 9216
    assert codex.arrival_s == 0.0
    assert claude.arrival_s > 0.0


def test_aiperf_rows_accumulate() -> None:
    a, b, alone = read_fixture("aiperf.jsonl")
    assert [turn.prompt_tokens for turn in a.turns] == [1200, 1580, 1660]
    assert [turn.gap_s for turn in a.turns] == [0.25, 4.0005, 0.0]
    assert (a.arrival_s, b.arrival_s, alone.arrival_s) == (1.5, 2.5, 9.0)
    assert common_prefix_tokens(prompt_segments(a, 0), prompt_segments(b, 0)) == 1024
    said = [*prompt_segments(a, 0), reply_segment(a, 0)]
    assert common_prefix_tokens(said, prompt_segments(a, 1)) == 1280


def test_miniswe_prompts_share_what_their_text_shares() -> None:
    one, other = read_fixture("miniswe.jsonl.xz")
    assert one.arrival_s == 0.0 < other.arrival_s
    assert [len(one.turns), len(other.turns)] == [4, 4]
    assert all(turn.text and turn.output_tokens == round(len(turn.text) / 4) for turn in one.turns)
    # Each prompt goes on from the one before it, but for what is left of a block of 16.
    for before, after in zip(one.turns, one.turns[1:], strict=False):
        assert after.prompt_tokens > before.prompt_tokens
    shared = common_prefix_tokens(prompt_segments(one, 0), prompt_segments(one, 1))
    assert 0 <= one.turns[0].prompt_tokens - shared <= 16
    fast, *_ = read_any(FIXTURES / "miniswe.jsonl.xz", s_per_token=0.0)
    assert fast.turns[0].tools[0].duration_s > one.turns[0].tools[0].duration_s >= 0.0
    assert not one.turns[-1].tools
    with pytest.raises(TraceError, match="not positive"):
        list(read_any(FIXTURES / "miniswe.jsonl.xz", chars_per_token=0.0))


def test_tasks_are_accepted_and_refused_where_turns_are_needed() -> None:
    task, replayable = read_fixture("mas_task.jsonl")
    assert task.session_id == "r-1"
    assert task.live is not None
    assert task.live["payload"]["problem_statement"] == "Fix it."
    assert list(require_turns([replayable])) == [replayable]
    with pytest.raises(TraceError, match="'r-1' has no recorded turns"):
        list(require_turns([task]))


BROKEN = [
    ("weka.replay.jsonl.xz", '"in":', '"in":"x","was":', "turns[0].in"),
    ("weka.raw.jsonl.xz", '"block_size":64', '"block_size":0', "block_size"),
    ("weka.raw.jsonl.xz", '"api_time":', '"api_time":"x","was":', "requests[0].api_time"),
    ("weka.replay.jsonl.xz", '"block_size":64', '"block_size":4096', "turns[0].blocks"),
    ("thunderagent.replay.jsonl.xz", '"dur_s":', '"dur_s":-', "turns[0].tools[0].dur_s"),
    ("thunderagent.replay.jsonl.xz", '"in":', '"in":null,"was":', "turns[0].in"),
    ("mooncake.jsonl", '"hash_ids": [', '"hash_ids": [-1,', "hash_ids[0]"),
    ("mooncake.jsonl", '"timestamp": ', '"time": ', ""),
    ("azure.csv", "2023-", "x-", "TIMESTAMP"),
    ("azure.csv", ",374,", ",-374,", "ContextTokens"),
    (
        "tracelab.jsonl",
        '"input_tokens_total":',
        '"input_tokens_total":null,"was":',
        "input_tokens_",
    ),
    ("tracelab.jsonl", '"timestamp":"', '"timestamp":"x', "timing_events[0].timestamp"),
    ("aiperf.jsonl", '"input_length": 1200', '"input_length": 1.5', "input_length"),
    ("miniswe.jsonl.xz", '"timestamp": ', '"timestamp": "x", "was": ', "timestamp"),
    ("mas_task.jsonl", '"payload": {', '"payload": 1, "was": {', "payload"),
    ("mas_task.jsonl", '"path": "p', '"path": "../p', "workspace_init[0].path"),
]


@pytest.mark.parametrize(("name", "old", "new", "field"), BROKEN)
def test_a_broken_line_names_file_line_and_field(
    tmp_path: Path, name: str, old: str, new: str, field: str
) -> None:
    source = FIXTURES / name
    packed = source.read_bytes()
    text = (lzma.decompress(packed) if source.suffix == ".xz" else packed).decode()
    assert old in text
    path = tmp_path / name.removesuffix(".xz")
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TraceError) as caught:
        list(read_any(path, FILES[name]))
    line = 2 if name == "azure.csv" else 1
    assert (caught.value.source, caught.value.line) == (str(path), line)
    assert caught.value.field.startswith(field)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("content", ["", "hello\n", "[1]\n", '{"a": 1}\n'])
def test_an_unknown_form_is_one_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(TraceError, match=r"form is not recognised|holds no line"):
        list(read_any(path))


def test_an_unknown_form_name_lists_the_known_ones() -> None:
    with pytest.raises(TraceError, match="weka"):
        list(read_any("public:swe-agent", "wekka"))


@pytest.mark.parametrize("form", ["weka", "thunderagent", "mooncake", "azure", "aiperf"])
def test_an_empty_file_is_one_error(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n")
    with pytest.raises(TraceError, match="holds no"):
        list(read_any(path, form))


def test_the_public_traces_are_as_promised() -> None:
    assert public_names() == ["claude-code", "swe-agent"]
    swe = list(read_trace("public:swe-agent"))
    assert len({session.task for session in swe}) == len(swe) == 32
    assert all(turn.tools for session in swe for turn in session.turns[:-1])
    claude = list(read_trace("public:claude-code"))
    assert len(claude) == 35
    assert max(turn.prompt_tokens for s in claude for turn in s.turns) <= 100_000
    for session in claude:
        common = [
            common_prefix_tokens(prompt_segments(session, 0), prompt_segments(other, 0))
            for other in claude
            if other is not session
        ]
        assert max(common) >= 2048


def test_the_mooncake_export_keeps_lengths_and_shared_blocks(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    sessions = list(read_trace("public:claude-code"))[:4]
    num_rows = write_mooncake(path, sessions)
    again = list(read_any(path, "mooncake"))
    assert num_rows == len(again) == sum(len(session.turns) for session in sessions)
    lengths = sorted(t.prompt_tokens for s in sessions for t in s.turns)
    assert sorted(s.turns[0].prompt_tokens for s in again) == lengths
    assert [s.arrival_s for s in again] == sorted(s.arrival_s for s in again)
    firsts = [
        next(s for s in again if s.turns[0].prompt_tokens == x.turns[0].prompt_tokens)
        for x in sessions
    ]
    for a, exported_a in zip(sessions, firsts, strict=True):
        for b, exported_b in zip(sessions, firsts, strict=True):
            if a is b:
                continue
            real = common_prefix_tokens(prompt_segments(a, 0), prompt_segments(b, 0))
            kept = common_prefix_tokens(
                prompt_segments(exported_a, 0), prompt_segments(exported_b, 0)
            )
            assert kept == real // 512 * 512


def test_exported_block_ids_name_the_whole_prefix(tmp_path: Path) -> None:
    def session(name: str, first: int) -> TraceSession:
        blocks = ((first, 1), (7, 1))
        turn = TraceTurn(prompt_tokens=1024, output_tokens=1, blocks=blocks, block_size=512)
        return TraceSession(session_id=name, turns=(turn,))

    path = tmp_path / "m.jsonl"
    write_mooncake(path, [session("a", 1), session("b", 2), session("c", 1)])
    # The second block is equal, but follows another one: a prefix cache must not take it.
    assert [msgspec.json.decode(line)["hash_ids"] for line in path.read_bytes().splitlines()] == [
        [0, 1],
        [2, 3],
        [0, 1],
    ]
