# SPDX-License-Identifier: Apache-2.0
"""Files: what is written is read back, and each broken line gives one error with place and fix."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.traces.errors import TraceError
from mars.traces.io import open_lines, read_trace, write_trace
from mars.traces.schema import (
    TraceSession,
    TraceTool,
    TraceTurn,
    decode_session,
    encode_session,
    require_turns,
)

GOOD = (
    b'{"schema":"mars.trace/1","session_id":"s1","arrival_s":12,"someone_elses_key":[1],'
    b'"turns":[{"prompt_tokens":9300,"output_tokens":120,"shared_prefix":["tools-a",8200],'
    b'"tools":[{"name":"test","duration_s":2.2,"cpu_s":1.3,"command":null}],"gap_s":0.1}]}'
)

tools = st.builds(
    TraceTool,
    name=st.text(min_size=1, max_size=5),
    duration_s=st.floats(0, 1e6),
    cpu_s=st.floats(0, 1e6),
    peak_bytes=st.integers(0, 2**40),
    command=st.none() | st.text(max_size=5),
)
turns = st.builds(
    TraceTurn,
    prompt_tokens=st.integers(1000, 2000),
    output_tokens=st.integers(1, 100),
    reused_tokens=st.none() | st.integers(0, 3000),
    shared_prefix=st.none() | st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 900)),
    blocks=st.none() | st.just(((3, 5), (100, 2))),
    text=st.none() | st.text(max_size=5),
    tools=st.lists(tools, max_size=3).map(tuple),
    gap_s=st.floats(0, 1e6),
)
sessions = st.builds(
    TraceSession,
    session_id=st.text(min_size=1, max_size=5),
    arrival_s=st.floats(0, 1e6),
    tenant=st.sampled_from(["default", "t"]),
    parent=st.none() | st.text(max_size=3),
    turns=st.lists(turns, max_size=4).map(tuple),
    live=st.none() | st.just({"payload": {"text": "x"}}),
)


@given(sessions)
def test_a_session_survives_its_line(session: TraceSession) -> None:
    line = encode_session(session)
    again = decode_session(line)
    assert again == session
    assert encode_session(again) == line


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.xz"])
def test_files_round_trip_and_repeat_to_the_byte(tmp_path: Path, suffix: str) -> None:
    written = [decode_session(GOOD), TraceSession(session_id="only-a-task")]
    path, twin = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    assert write_trace(path, written) == 2
    assert list(read_trace(path)) == written
    write_trace(twin, iter(written))
    assert path.read_bytes() == twin.read_bytes()


def test_unknown_keys_pass_and_whole_numbers_are_times() -> None:
    session = decode_session(GOOD)
    assert session.arrival_s == 12.0
    assert session.turns[0].shared_prefix == ("tools-a", 8200)
    assert session.turns[0].block_size == 64


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        (b"9300", b'"9300"', 2, "turns[0].prompt_tokens"),
        (b"9300", b"0", 2, "turns[0].prompt_tokens"),
        (b"9300", b"8199", 2, "turns[0].shared_prefix"),
        (b'"output_tokens":120,', b"", 2, "turns[0]"),
        (b'"duration_s":2.2', b'"duration_s":-1', 2, "turns[0].tools[0].duration_s"),
        (b'"gap_s":0.1', b'"gap_s":0.1,"blocks":[[0,200]]', 2, "turns[0].blocks"),
        (b'"session_id":"s1"', b'"session_id":"s0"', 2, "session_id"),
        (b'"session_id":"s1"', b'"session_id":""', 2, "session_id"),
        (b"mars.trace/1", b"mars.trace/2", 2, "schema"),
        (b"}]}", b"}", 2, ""),
    ],
)
def test_a_bad_line_names_file_line_and_field(
    tmp_path: Path, old: bytes, new: bytes, line: int, field: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(GOOD.replace(b"s1", b"s0") + b"\n" + GOOD.replace(old, new, 1) + b"\n")
    reader = read_trace(path)
    assert next(reader).session_id == "s0"
    with pytest.raises(TraceError) as caught:
        next(reader)
    assert (caught.value.source, caught.value.line) == (str(path), line)
    assert caught.value.field == field
    message = str(caught.value)
    assert message.startswith(f"{path}: line {line}: {field}")
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no session"),
        (b"\n\n", "holds no session"),
        (b'{"schema":"agent_replay_v1","turns":[]}\n', "mars trace convert"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "mars trace convert"),
        (b'{"schema":"mars.trace/1"\n', "complete JSON object"),
    ],
)
def test_what_is_no_trace_is_refused_at_its_first_line(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=says):
        list(read_trace(path))


def test_a_cut_compressed_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.xz"
    path.write_bytes(lzma.compress(GOOD * 50)[:-40])
    with pytest.raises(TraceError, match="damaged or cut short"):
        list(open_lines(path))


@pytest.mark.parametrize("name", ["no-such-file.jsonl", "public:nothing"])
def test_a_missing_trace_lists_what_there_is(name: str) -> None:
    with pytest.raises(TraceError, match=r"public|swe-agent"):
        list(read_trace(name))


def test_tasks_without_turns_are_refused_only_where_turns_are_needed() -> None:
    task = TraceSession(session_id="t1")
    with pytest.raises(TraceError, match="'t1' has no recorded turns"):
        list(require_turns([task]))
    assert next(iter(require_turns([decode_session(GOOD)]))).session_id == "s1"
