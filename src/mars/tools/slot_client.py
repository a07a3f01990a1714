# SPDX-License-Identifier: Apache-2.0
"""Asks a tool server for a slot, from a process that runs its tool itself."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from mars.tools.request import ToolResult

WAIT_S = 60.0
"""Longest wait for a slot, then the tool runs without one: hooks of agents give up after
60 s (OpenHands), shells of agents after 120 s."""


class SlotClient:
    """One slot of a tool server's pool, held by this process. A server that is away, or too
    slow, never stops a tool.

    Args:
        path: Socket of the server.
        wait_s: Longest wait for a slot.
        warn: Takes one line where the tool runs without a slot.
    """

    def __init__(self, path: str, wait_s: float, warn: Callable[[str], None]) -> None:
        self._path = path
        self._wait_s = wait_s
        self._warn = warn
        self._socket: socket.socket | None = None
        self.cores: frozenset[int] | None = None
        """Where the tool is to run, once there is a slot; None: anywhere."""

    def acquire(self, session_id: str, tool_call_id: str, tool_name: str) -> bool:
        """Wait for a slot; False (after a warning) where there is none to be had."""
        ask: dict[str, Any] = {
            "op": "lease",
            "session_id": session_id,
            "tool_call_id": tool_call_id,
            "tool_name": tool_name,
        }
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(self._wait_s)
        try:
            link.connect(self._path)
            link.sendall(msgspec.json.encode(ask) + b"\n")
            cores = _await_grant(link).get("cores")
        except TimeoutError:
            reason = f"no slot within {self._wait_s:g} s"
        except (OSError, msgspec.DecodeError) as error:
            reason = str(error)
        else:
            self._socket = link
            self.cores = frozenset(cores) if cores else None
            return True
        link.close()
        self._warn(f"running without a slot of the tool server at {self._path}: {reason}")
        return False

    def release(self, result: ToolResult) -> None:
        """Give the slot back and say how the tool ended."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError), contextlib.closing(self._socket) as link:
            link.sendall(msgspec.json.encode(result) + b"\n")
            link.recv(1)  # the server hangs up once it has noted the end
        self._socket = None


def _await_grant(link: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        chunk = link.recv(65536)
        if not chunk:
            break
        line += chunk
    answer = msgspec.json.decode(line or b"{}", type=dict[str, Any])
    if "queued_s" not in answer:
        raise OSError(answer.get("error", "it hung up"))
    return answer
