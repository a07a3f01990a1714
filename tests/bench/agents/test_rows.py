# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from mars.bench.agents.clients import CLIENTS, Client
from mars.bench.agents.rows import Row, Run, fill_main, markdown, survived
from mars.bench.agents.tap import TappedRequest
from mars.bench.agents.tasks import PHASES, POEM, task, write_scripts
from mars.core import events as ev
from mars.engine.emulated.scripts import ScriptBook

CODEX = CLIENTS["codex"]
DONE = Run(exit_code=0, last_words="All done", duration_s=12.0)


def sent(session: str, *, tools: bool = True, **headers: str) -> TappedRequest:
    body = {"input": task(CODEX, "main"), "tools": [{"name": "bash"}] if tools else []}
    named = {"x-session-id": session} | {k.replace("_", "-"): v for k, v in headers.items()}
    return TappedRequest("POST", "/v1/responses", named, json.dumps(body).encode(), 0.0)


def row_of(tmp_path: Path, requests: list[TappedRequest], run: Run = DONE) -> Row:
    row = Row(name=CODEX.name, title=CODEX.title, version="1", api=CODEX.api)
    (tmp_path / "poem.txt").write_text(POEM)
    names = {"session_id": "s1", "tool_call_id": "c", "tool_name": "bash"}
    ended = {"cpu_seconds": 0.0, "peak_bytes": 0, "exit_code": 0}
    events = [
        ev.SessionAdmitted(time=9.0, session_id="s1", held_s=30.4, mode="fcfs", num_active=1),
        ev.ToolFinished(time=12.0, duration_s=2.0, **names, **ended),  # type: ignore[arg-type]
    ]
    fill_main(row, CODEX, run, tmp_path, requests, events)
    return row


def test_a_session_is_recognised_by_what_named_it(tmp_path: Path) -> None:
    requests = [sent("s1", session_id="s1"), sent("s1", session_id="s1")]
    row = row_of(tmp_path, requests)
    assert row.session == "`session-id`"
    assert (row.hold, row.tools, row.stream) == ("yes, 30 s", "1 of 3, first +0.5 s", "yes")
    assert row.side_calls == "none sent"


def test_without_a_name_it_is_what_the_client_echoes(tmp_path: Path) -> None:
    assert row_of(tmp_path, [sent("anon-1")]).session == "tool-call ids it echoes"


def test_split_sessions_and_lost_side_calls_are_told(tmp_path: Path) -> None:
    assert row_of(tmp_path, [sent("s1"), sent("s2")]).session == "no: 2 sessions"
    row = row_of(tmp_path, [sent("s1"), sent("s1"), sent("s2", tools=False)])
    assert row.side_calls == "0 of 1"


def test_summaries_of_an_agent_without_tools_are_its_side_calls(tmp_path: Path) -> None:
    aider = CLIENTS["aider"]

    def asked(instructions: str, session: str) -> TappedRequest:
        said = [{"content": instructions}, {"content": task(aider, "main")}]
        body = json.dumps({"messages": said}).encode()
        return TappedRequest("POST", "/v1/chat/completions", {"x-session-id": session}, body, 0.0)

    row = Row(name=aider.name, title=aider.title, version="1", api=aider.api)
    steps = [asked("Edit.", "anon-1"), asked("Edit.", "anon-1")]
    requests = [*steps, asked("Summarise.", "anon-1/side"), asked("Summarise.", "anon-2")]
    fill_main(row, aider, DONE, tmp_path, requests, [])
    assert (row.session, row.side_calls) == ("replies it echoes", "1 of 2")


def test_what_the_tool_runtime_measured_is_told(tmp_path: Path) -> None:
    names = {"session_id": "s1", "tool_call_id": "c", "tool_name": "bash"}
    used = {"cpu_seconds": 0.3, "peak_bytes": 5 << 20, "exit_code": 0}
    events = [
        ev.ToolStarted(time=10.0, queued_s=0.4, **names),
        ev.ToolFinished(time=12.0, duration_s=1.6, **names, **used),  # type: ignore[arg-type]
    ]
    row = Row(name=CODEX.name, title=CODEX.title, version="1", api=CODEX.api)
    fill_main(row, CODEX, DONE, tmp_path, [sent("s1")], events)
    assert row.tools == "1 commands measured, first +0.10 s: 0.30 CPU s, 5 MiB, queued 0.4 s"


def test_a_failure_is_quoted(tmp_path: Path) -> None:
    failed = Run(exit_code=1, last_words="stream broke", duration_s=3.0)
    assert survived(CODEX, failed, tmp_path) == "no: exit code 1, 'stream broke'"
    assert row_of(tmp_path, [], failed).session == "no request came: stream broke"
    assert "| Codex CLI | 1 | responses |" in markdown([row_of(tmp_path, [], failed)])


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.name)
def test_every_agent_has_an_example_a_version_and_scripts(client: Client, tmp_path: Path) -> None:
    assert len(client.example.read_text().splitlines()) <= 40
    assert client.version[0].isdigit()
    path = tmp_path / "scripts.jsonl"
    write_scripts(path, tmp_path, [client])
    book = ScriptBook.read(path)
    for phase in PHASES:
        assert f"{client.name}.{phase}" in book.reply(f"<|im_start|>user\n{task(client, phase)}")
