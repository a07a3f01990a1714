# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from mars.engine.emulated.scripts import NOTHING_TO_SAY, ScriptBook, ScriptError

SCRIPT = {
    "script": "task-1",
    "steps": [
        {"text": "Look.", "calls": [{"run": "ls"}]},
        {"text": "Write.", "calls": [{"write": {"path": "/w/a", "content": "é\n"}}]},
        {"text": "Done."},
    ],
}


@pytest.fixture
def book(tmp_path: Path) -> ScriptBook:
    path = tmp_path / "scripts.jsonl"
    path.write_text(json.dumps(SCRIPT))
    return ScriptBook.read(path)


def prompt(*tools: dict[str, Any], said: str = "") -> str:
    """As the chat template renders tools, task and history."""
    lines = "\n".join(json.dumps({"type": "function", "function": tool}) for tool in tools)
    system = f"<|im_start|>system\nBe good.\n# Tools\n{lines}<|im_end|>\n" if tools else ""
    return f"{system}<|im_start|>user\nDo it. [[mars:task-1]]<|im_end|>\n{said}"


def tool(name: str, required: tuple[str, ...] = (), **types: str) -> dict[str, Any]:
    fields = {field: {"type": kind} for field, kind in types.items()}
    return {"name": name, "parameters": {"properties": fields, "required": list(required)}}


def called(reply: str) -> dict[str, Any]:
    return json.loads(reply.partition("<tool_call>")[2].partition("</tool_call>")[0])


BASH = tool("bash", ("command",), command="string")


def test_the_task_names_the_script_and_each_reply_its_step(book: ScriptBook) -> None:
    first = book.reply(prompt(BASH))
    assert first.startswith("Look. [[mars:task-1:0]]")
    assert called(first) == {"name": "bash", "arguments": {"command": "ls"}}
    second = book.reply(prompt(BASH, said=first))
    assert "[[mars:task-1:1]]" in second
    assert book.reply(prompt(BASH, said=first)) == second  # asked again: the same
    assert book.reply(prompt(BASH, said="[[mars:task-1:1]]")) == "Done. [[mars:task-1:2]]"


def test_each_agent_is_called_by_the_names_of_its_own_tools(book: ScriptBook) -> None:
    codex = tool("exec_command", ("cmd",), cmd="string")
    assert called(book.reply(prompt(codex)))["arguments"] == {"cmd": "ls"}
    cline = tool("run_commands", ("commands",), commands="array")
    assert called(book.reply(prompt(cline)))["arguments"] == {"commands": ["ls"]}
    qwen = tool("run_shell_command", ("command", "bg"), command="string", bg="boolean")
    assert called(book.reply(prompt(qwen)))["arguments"] == {"command": "ls", "bg": False}
    lists = tool("shell", ("command",), command="array")
    assert called(book.reply(prompt(lists)))["arguments"] == {"command": ["bash", "-lc", "ls"]}


def test_files_are_written_with_the_editor_or_else_by_the_shell(book: ScriptBook) -> None:
    said = "[[mars:task-1:0]]"
    editor = tool("Write", ("file_path",), file_path="string", content="string")
    assert called(book.reply(prompt(BASH, editor, said=said))) == {
        "name": "Write",
        "arguments": {"file_path": "/w/a", "content": "é\n"},
    }
    assert "cat > /w/a" in called(book.reply(prompt(BASH, said=said)))["arguments"]["command"]


def test_the_end_is_told_the_way_the_agent_wants_it(book: ScriptBook) -> None:
    said = "[[mars:task-1:1]]"
    finish = tool("finish", ("message",), message="string")
    assert called(book.reply(prompt(BASH, finish, said=said)))["name"] == "finish"
    by_shell = prompt(BASH, said=said + " COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
    assert "echo COMPLETE_TASK" in called(book.reply(by_shell))["arguments"]["command"]


def test_a_forced_call_is_nothing_but_calls_and_keeps_its_text_in_them(book: ScriptBook) -> None:
    reply = book.reply(prompt(BASH), is_forced=True)
    assert reply.startswith("<tool_call>")
    assert reply.endswith("</tool_call>")
    assert called(reply)["arguments"] == {"command": "ls\n# Look. [[mars:task-1:0]]"}


def test_side_calls_and_strangers_get_a_few_words(book: ScriptBook) -> None:
    assert NOTHING_TO_SAY in book.reply(prompt())  # a title: same task, no tools
    assert book.reply("<|im_start|>user\nhello<|im_end|>") == NOTHING_TO_SAY


def test_a_bad_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "scripts.jsonl"
    path.write_text(json.dumps(SCRIPT) + '\n{"script": "x", "steps": [{"calls": [{}]}]}')
    with pytest.raises(ScriptError, match="line 2: a call is one of run, write and tool"):
        ScriptBook.read(path)
    with pytest.raises(ScriptError, match="No such file"):
        ScriptBook.read(tmp_path / "none")
