# SPDX-License-Identifier: Apache-2.0
"""What a tool call asks for, and what came of it."""

from __future__ import annotations

import re
import shlex

import msgspec

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_WRAPPERS = frozenset({"sudo", "env", "time", "nice", "nohup", "exec", "command", "timeout"})
_SHELLS = frozenset({"sh", "bash", "zsh", "dash"})
_RUNNERS = frozenset({"python", "python3", "uv", "npm", "npx", "cargo", "go", "make", "poetry"})
"""Commands whose second word says more about the time they take than the first."""


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tool call may use; ``None``: not limited.

    ``cpu_weight`` is the share relative to other calls when CPUs are short (100 is
    normal, as in cgroup v2), ``cpu_cores`` a hard quota. At ``memory_high_bytes`` the call
    is slowed, at ``memory_bytes`` it is ended with a message that says so.
    """

    cpu_weight: int | None = None
    cpu_cores: float | None = None
    memory_high_bytes: int | None = None
    memory_bytes: int | None = None
    num_processes: int | None = None
    file_bytes: int | None = None
    """Largest single file it may write."""
    disk_floor_bytes: int | None = None
    """What must stay free in the file system of its folder: a call that fills it is ended."""
    output_bytes: int = 64 * 1024
    """Of stdout and of stderr kept: half from the start, half from the end."""


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tool call: a command run for a session."""

    session_id: str
    tool_call_id: str
    tool_name: str
    argv: tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] | None = None
    """Added to the environment of the runtime; ``None``: nothing added."""
    stdin: bytes = b""
    timeout_s: float | None = None
    grace_s: float = 2.0
    """Between SIGTERM and SIGKILL when it is stopped."""
    keeps_background: bool = False
    """Leave processes it started in the background alive when it ends by itself."""
    limits: ToolLimits = ToolLimits()

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("argv is empty: name the command to run")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, not {self.timeout_s}")
        if self.limits.output_bytes < 2:
            raise ValueError(f"output_bytes must be at least 2, not {self.limits.output_bytes}")

    @property
    def tool_class(self) -> str:
        """``tool:command``: what tool times are learned by."""
        return tool_class(self.tool_name, self.argv)


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool call ended; ``exit_code`` < 0 is the signal that ended it."""

    exit_code: int
    duration_s: float
    queued_s: float = 0.0
    cpu_seconds: float = 0.0
    """Of all its processes."""
    peak_bytes: int = 0
    """Of all its processes together where the machine accounts it, else of the largest."""
    is_timed_out: bool = False
    is_memory_exceeded: bool = False
    num_left_behind: int = 0
    """Processes still alive when it ended, stopped by the runtime."""
    stdout: bytes = b""
    stderr: bytes = b""
    notices: tuple[str, ...] = ()
    """What the runtime did to it, in words for the agent; also at the end of stderr."""


def tool_class(tool_name: str, argv: tuple[str, ...]) -> str:
    """``bash`` running ``cd src && FOO=1 python -m pytest -q`` is ``bash:python pytest``."""
    words = list(argv)
    if len(words) >= 3 and words[0].rpartition("/")[2] in _SHELLS and words[1].startswith("-"):
        words = _last_command(words[2])
    while words and (
        words[0] in _WRAPPERS
        or _ASSIGNMENT.match(words[0])
        or words[0].startswith("-")
        or words[0].replace(".", "").rstrip("smh").isdigit()
    ):
        words.pop(0)
    if not words:
        return tool_name
    command = words[0].rpartition("/")[2]
    if command in _RUNNERS:
        rest = [w for w in words[1:] if not w.startswith("-")]
        command = f"{command} {rest[0].rpartition('/')[2]}" if rest else command
    return f"{tool_name}:{command[:64]}"


def _last_command(script: str) -> list[str]:
    """Words of the last command that is not a change of folder; pipes count by their head."""
    try:
        lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        words = script.split()
    commands: list[list[str]] = [[]]
    is_piped = False
    for word in words:
        if word in (";", "&&", "||", "&"):
            commands.append([])
            is_piped = False
        elif word == "|":
            is_piped = True
        elif not is_piped:
            commands[-1].append(word)
    for words in commands:
        if words[:1] == ["eval"] and len(words) > 1:  # how Claude Code wraps a command
            return _last_command(words[1])
    told = [c for c in commands if c and c[0] not in ("cd", "export", "set", "echo", "source")]
    return told[-1] if told else next((c for c in commands if c), [])
