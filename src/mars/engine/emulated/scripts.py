# SPDX-License-Identifier: Apache-2.0
"""Scripted replies for agents that are left as they are.

An unmodified agent sends no script with its requests. So the task it is given names one, as
``[[mars:NAME]]``, and every reply says which step it was, as ``[[mars:NAME:3]]``. The prompt
alone then tells what comes next, however often a client asks again or rewrites its
history. A step's actions become calls of whatever tools that agent offers, with its own
names of arguments; without tools (a title, a summary) the answer is a few words.

A file holds one script a line: ``{"script": NAME, "steps": [{"text", "calls": [...]}]}``,
where a call is ``{"run": COMMAND}``, ``{"write": {"path", "content"}}`` or
``{"tool": NAME, "arguments": {...}}``. The last step's text is the answer to the task.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import DecodeError, Struct, ValidationError
from msgspec.json import Decoder

NOTHING_TO_SAY = "Noted."
"""The answer to side calls (titles, summaries) and to prompts that name no script."""
_MARK = re.compile(r"\[\[mars:([\w.@/+-]+?)(?::(\d+))?\]\]")
_TERMINALS = (
    *("terminal", "bash", "Bash", "exec_command", "shell_command", "shell", "local_shell"),
    *("run_shell_command", "developer__shell", "execute_bash", "run_command", "execute_command"),
    "run_commands",
)
_COMMAND_FIELDS = ("command", "cmd", "commands")
_YIELD, YIELD_MS = "yield_time_ms", 30_000
"""How long Codex waits for a command before it goes on without it; its most."""
_EDITORS = ("file_editor", "str_replace_editor", "Write", "write", "write_file")
_FINISHERS = ("finish", "final_answer", "submit", "attempt_completion", "submit_and_exit")
_SUBMIT_BY_SHELL = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""mini-swe-agent ends when a command prints this."""


ToolCall = tuple[str, Mapping[str, Any]]
"""Name and arguments."""


class WrittenFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file the agent is to write."""

    path: str
    content: str


class Call(Struct, frozen=True, forbid_unknown_fields=True):
    """One action; exactly one of ``run``, ``write`` and ``tool``."""

    run: str | None = None
    write: WrittenFile | None = None
    tool: str | None = None
    arguments: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.run, self.write, self.tool)) != 1:
            raise ValueError("a call is one of run, write and tool")


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One reply: text, then calls. Without calls it is the answer to the task."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """All replies to one task."""

    script: str
    steps: tuple[Step, ...]


class ScriptError(ValueError):
    """A file of scripts cannot be read; the message names the line and the fix."""


class ScriptBook:
    """All scripts, by name.

    Args:
        scripts: names must be unique.
    """

    def __init__(self, scripts: Iterable[Script]) -> None:
        self._scripts = {script.script: script.steps for script in scripts}

    @classmethod
    def read(cls, path: str | Path) -> ScriptBook:
        """Read a file of scripts.

        Raises:
            ScriptError: it cannot be read, or a line is none.
        """
        decoder, scripts = Decoder(Script), list[Script]()
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise ScriptError(f"engine.scripts: {path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                scripts.append(decoder.decode(line))
            except (DecodeError, ValidationError) as error:
                raise ScriptError(f"engine.scripts: {path}, line {number}: {error}") from error
        return cls(scripts)

    def reply(self, prompt: str, *, is_forced: bool = False) -> str:
        """The text that answers a rendered prompt, tool calls between their marks.

        Args:
            prompt: as the chat template made it.
            is_forced: the request demands a tool call (``tool_choice: required``): the
                answer is calls and nothing else, which is what vLLM's grammar accepts.
        """
        tools = offered_tools(prompt)
        marks = _MARK.findall(prompt)
        name = next((name for name, _ in marks if name in self._scripts), None)
        if name is None:
            return NOTHING_TO_SAY
        steps = self._scripts[name]
        done = [int(step) for known, step in marks if known == name and step]
        index = min(max(done, default=-1) + 1, len(steps) - 1)
        step = steps[index]
        is_shell_only = not step.calls and _SUBMIT_BY_SHELL in prompt
        is_aside = not tools and any(other.calls for other in steps)
        if is_aside and (step.calls or not done):
            return f"{NOTHING_TO_SAY} ({name})"
        text = f"{step.text} [[mars:{name}:{index}]]".lstrip()
        calls = [_render(call, tools) for call in step.calls]
        if not calls:
            calls = _finish(text, tools, is_shell_only=is_shell_only)
        if is_forced and calls:
            return _forced(calls, " ".join(text.split()))
        return "\n".join([text, *map(_marked, calls)])


def offered_tools(prompt: str) -> dict[str, Mapping[str, Any]]:
    """Name and parameter schema of the tools that a rendered prompt lists."""
    _, found, rest = prompt.partition("\n# Tools\n")
    tools: dict[str, Mapping[str, Any]] = {}
    for line in rest.partition("<|im_end|>")[0].splitlines() if found else ():
        try:
            function = json.loads(line)["function"]
            tools[function["name"]] = function.get("parameters") or {}
        except (ValueError, TypeError, KeyError):
            continue  # not a function: nothing that a scripted agent would call
    return tools


def _render(call: Call, tools: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    if call.tool is not None:
        return call.tool, call.arguments
    if call.write is not None:
        editor = next((name for name in _EDITORS if name in tools), None)
        if editor is not None:
            return editor, _edit(tools[editor], call.write)
        return _run(_as_shell(call.write), tools)
    return _run(call.run or "true", tools)


def _run(command: str, tools: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    name = next((name for name in _TERMINALS if name in tools), None)
    if name is None:
        name = next(iter(tools))
    fields = tools[name].get("properties") or {}
    field = next((known for known in _COMMAND_FIELDS if known in fields), "command")
    given: dict[str, Any] = {field: command}
    if fields.get(field, {}).get("type") == "array":  # of words, or of commands (Cline)
        given[field] = [command] if field == "commands" else ["bash", "-lc", command]
    if _YIELD in fields:
        given[_YIELD] = YIELD_MS
    return name, given | _required(tools[name], given)


def _edit(schema: Mapping[str, Any], file: WrittenFile) -> dict[str, Any]:
    fields = schema.get("properties") or {}
    given: dict[str, Any] = {"command": "create"} if "command" in fields else {}
    for name in fields:
        if name in ("path", "file_path", "filePath"):
            given[name] = file.path
        elif name in ("file_text", "content"):
            given[name] = file.content
    return given | _required(schema, given)


def _finish(
    text: str, tools: Mapping[str, Mapping[str, Any]], *, is_shell_only: bool
) -> list[ToolCall]:
    """How this agent is told that the task is done; most need nothing but the text."""
    name = next((name for name in _FINISHERS if name in tools), None)
    if name is not None:
        fields = tools[name].get("properties") or {}
        given = {next(iter(fields), "message"): text}
        return [(name, given | _required(tools[name], given))]
    if is_shell_only:
        return [_run(f"echo {_SUBMIT_BY_SHELL}; echo {shlex.quote(text)}", tools)]
    return []


def _required(schema: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Something valid for each further argument that the schema insists on."""
    fields = schema.get("properties") or {}
    return {
        name: _something(fields.get(name, {}))
        for name in schema.get("required") or ()
        if name not in given
    }


def _something(field: Mapping[str, Any]) -> Any:
    if field.get("enum"):
        return field["enum"][0]
    values = {"boolean": False, "integer": 0, "number": 0, "array": [], "object": {}}
    return values.get(str(field.get("type")), "scripted")


def _as_shell(file: WrittenFile) -> str:
    return f"cat > {shlex.quote(file.path)} <<'MARS_END'\n{file.content}\nMARS_END"


def _marked(call: ToolCall) -> str:
    name, arguments = call
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _forced(calls: Iterable[ToolCall], text: str) -> str:
    """The text with the step's mark goes into the arguments: as a comment, into a command."""
    written: list[str] = []
    for name, arguments in calls:
        marked = dict(arguments)
        for field in _COMMAND_FIELDS:
            if isinstance(marked.get(field), str):
                marked[field] += f"\n# {text}"
        written.append(_marked((name, marked)))
    return "".join(written)
