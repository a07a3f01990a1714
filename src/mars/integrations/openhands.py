# SPDX-License-Identifier: Apache-2.0
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""OpenHands with the tool runtime: terminal calls wait for a slot, and are reported.

Optional: without it MARS knows each conversation by the id that it sends, and takes the time
between two of its requests for the tool's. With it (and ``MARS_TOOLS``, which `mars serve`
names at its start) tool calls queue with those of all sessions, and their CPU time is known::

    from mars.integrations.openhands import register

    tools = [Tool(name=register(), params={"terminal_type": "subprocess"})]

Imports nothing that needs MARS to run here but `msgspec`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhands.sdk.tool import ToolExecutor, register_tool
from openhands.tools.terminal import TerminalTool

from mars.tools.request import ToolResult, tool_class
from mars.tools.slot_client import WAIT_S, SlotClient

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def register(name: str = "mars_terminal") -> str:
    """Make the tool known to OpenHands; returns the name to give to ``Tool``.

    The model still sees OpenHands' own `terminal`.
    """
    register_tool(name, MarsTerminalTool)
    return name


class MarsTerminalTool(TerminalTool):
    """OpenHands' terminal on slots of the tool runtime."""

    @classmethod
    def create(cls, conv_state: Any, **params: Any) -> Sequence[TerminalTool]:
        """OpenHands' own terminal, its executor wrapped."""
        return [
            tool.set_executor(SlottedExecutor(tool.executor))
            for tool in TerminalTool.create(conv_state, **params)
        ]


class SlottedExecutor(ToolExecutor):
    """Runs each action of another executor on a slot.

    A tool server that is away, or has no slot within ``MARS_TOOLS_WAIT_S``, never stops a tool.

    Args:
        inner: OpenHands' executor.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._path = os.environ.get("MARS_TOOLS", "")
        self._wait_s = float(os.environ.get("MARS_TOOLS_WAIT_S", WAIT_S))

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner executor's."""
        return getattr(self._inner, name)

    def __call__(self, action: Any, conversation: Any = None) -> Any:
        """Wait for a slot, run the action, and say what it took."""
        if not self._path or conversation is None:
            return self._inner(action, conversation)
        slot = SlotClient(self._path, self._wait_s, _warn)
        command = tool_class("terminal", ("bash", "-c", getattr(action, "command", "")))
        if not slot.acquire(str(conversation.id), uuid.uuid4().hex, command):
            return self._inner(action, conversation)
        self._move_to(slot.cores)
        started_at, cpu_seconds = time.monotonic(), self._cpu_seconds()
        exit_code = -1
        try:
            observation = self._inner(action, conversation)
            exit_code = getattr(observation, "exit_code", None) or 0
            return observation
        finally:
            slot.release(
                ToolResult(
                    exit_code=exit_code,
                    duration_s=time.monotonic() - started_at,
                    cpu_seconds=max(0.0, self._cpu_seconds() - cpu_seconds),
                )
            )

    def close(self) -> None:
        """Close the inner executor."""
        self._inner.close()

    def interrupt(self) -> None:
        """Interrupt the inner executor."""
        self._inner.interrupt()

    @property
    def _shell(self) -> Any:
        """The process of the conversation's shell; None where there is no one shell."""
        session = getattr(self._inner, "_session", None)
        return getattr(getattr(session, "terminal", None), "process", None)

    def _move_to(self, cores: frozenset[int] | None) -> None:
        """The shell, and what it starts from now on, runs on these cores."""
        if cores is not None and self._shell is not None:
            with contextlib.suppress(OSError):  # it has ended: the action will say so
                os.sched_setaffinity(self._shell.pid, cores)

    def _cpu_seconds(self) -> float:
        """Of the shell and of the commands it has waited for; 0 where there is no one shell."""
        process = self._shell
        if process is None:
            return 0.0
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / _TICKS_PER_S


def _warn(text: str) -> None:
    sys.stderr.write(f"mars: warning: {text}\n")
