# SPDX-License-Identifier: Apache-2.0
"""Stands between an MCP client and an MCP server on stdio, and schedules its tool calls.

Every message passes unchanged. Only a ``tools/call`` request waits for a slot before the
server sees it, and is reported when its answer comes back. MCP carries neither the agent's
session nor the model's tool-call id: the session is that of the proxy, one per agent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from mars.core.events import Event, ToolFinished, ToolQueued, ToolStarted
from mars.tools.request import ToolResult
from mars.tools.shim import EventPoster
from mars.tools.slot_client import SlotClient

GRACE_S = 5.0
"""For the server to end after the client is gone, and again after SIGTERM (chosen)."""
REPORT_S = 3.0
"""For the last reports to leave at the end."""
_CHUNK_BYTES = 65536
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ABANDONED = -15


class Message(msgspec.Struct, frozen=True):
    """The parts of a JSON-RPC message that matter here."""

    id: int | str | None = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    result: msgspec.Raw = msgspec.Raw(b"{}")
    error: msgspec.Raw | None = None


class _Params(msgspec.Struct, frozen=True, rename="camel"):
    name: str = "?"
    request_id: int | str | None = None


class _Result(msgspec.Struct, frozen=True, rename="camel"):
    is_error: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class OpenCall:
    """One ``tools/call`` between its request and its answer."""

    tool_name: str
    tool_call_id: str
    queued_at: float
    slot: SlotClient | None = None
    started_at: float | None = None
    cpu_seconds_before: float = 0.0
    is_cancelled: bool = False


class McpProxy:
    """Decides about single messages; thread-safe.

    Args:
        session_id: The agent's session.
        send: Passes a message to the server.
        poster: Told of calls that have no slot.
        make_slot: A fresh slot client for one call; ``None``: nothing to wait for.
        cpu_seconds: CPU the server has used so far; calls at the same time share it.
    """

    def __init__(
        self,
        session_id: str,
        send: Callable[[bytes], None],
        poster: EventPoster,
        make_slot: Callable[[], SlotClient | None],
        cpu_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._session_id = session_id
        self._send = send
        self._poster = poster
        self._make_slot = make_slot
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._calls: dict[int | str, OpenCall] = {}
        self._reports: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Done by a thread of their own, in order: no message waits for a gateway."""
        self._reporter = threading.Thread(target=self._report, daemon=True)
        self._reporter.start()

    def from_client(self, line: bytes) -> None:
        """Pass a message to the server; a tool call as soon as it has its slot."""
        message = _read(line) if b'"tools/call"' in line or b"cancelled" in line else None
        if message is None or message.method is None:
            self._send(line)
        elif message.method == "tools/call" and message.id is not None:
            name = _params(message).name
            call = OpenCall(f"mcp:{name}", uuid.uuid4().hex, time.monotonic())
            with self._lock:
                self._calls[message.id] = call
            threading.Thread(target=self._start, args=(call, line), daemon=True).start()
        else:
            if message.method == "notifications/cancelled":
                self._cancel(_params(message).request_id)
            self._send(line)

    def from_server(self, line: bytes) -> None:
        """Note the end of a call; the message itself is passed on by whoever read it."""
        message = _read(line)
        if message is None or message.method is not None or message.id is None:
            return
        with self._lock:
            call = self._calls.pop(message.id, None)
        if call is not None:
            is_failed = message.error is not None or _is_error(message)
            self._end(call, int(is_failed))

    def close(self) -> None:
        """Give up the calls that were never answered."""
        with self._lock:
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.is_cancelled = True
            self._end(call, _ABANDONED)
        self._reports.put(None)
        self._reporter.join(REPORT_S)

    def _report(self) -> None:
        while (report := self._reports.get()) is not None:
            report()

    def _start(self, call: OpenCall, line: bytes) -> None:
        slot = self._make_slot()
        if slot is not None and slot.acquire(self._session_id, call.tool_call_id, call.tool_name):
            call.slot = slot
        with self._lock:
            is_cancelled = call.is_cancelled
            if not is_cancelled:
                call.started_at = time.monotonic()
                call.cpu_seconds_before = self._cpu_seconds()
        if is_cancelled:
            self._end(call, _ABANDONED)
            return
        if call.slot is None:
            started_at = call.started_at or call.queued_at
            names = self._names(call)
            self._post(
                ToolQueued(time=call.queued_at, **names),
                ToolStarted(time=started_at, queued_s=started_at - call.queued_at, **names),
            )
        self._send(line)

    def _cancel(self, request_id: int | str | None) -> None:
        """The client no longer wants the answer; the server need not send one."""
        with self._lock:
            call = self._calls.pop(request_id, None) if request_id is not None else None
            if call is not None:
                call.is_cancelled = True
        if call is not None and call.started_at is not None:
            self._end(call, _ABANDONED)

    def _end(self, call: OpenCall, exit_code: int) -> None:
        now = time.monotonic()
        is_started = call.started_at is not None
        result = ToolResult(
            exit_code=exit_code,
            duration_s=now - call.started_at if call.started_at is not None else 0.0,
            cpu_seconds=self._cpu_seconds() - call.cpu_seconds_before if is_started else 0.0,
        )
        slot = call.slot
        if slot is not None:
            self._reports.put(lambda: slot.release(result))
        elif is_started:
            self._post(
                ToolFinished(
                    time=now,
                    duration_s=result.duration_s,
                    cpu_seconds=result.cpu_seconds,
                    peak_bytes=0,
                    exit_code=exit_code,
                    **self._names(call),
                )
            )

    def _names(self, call: OpenCall) -> dict[str, Any]:
        return {
            "session_id": self._session_id,
            "tool_call_id": call.tool_call_id,
            "tool_name": call.tool_name,
        }

    def _post(self, *events: Event) -> None:
        self._reports.put(lambda: self._poster.post(list(events)))


def run_proxy(
    argv: tuple[str, ...],
    session_id: str,
    poster: EventPoster,
    make_slot: Callable[[], SlotClient | None],
    client_in: int = 0,
    client_out: int = 1,
) -> int:
    """Start the server and pass messages until it ends; its exit code.

    Raises:
        OSError: the server cannot be started.
    """
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    proxy = McpProxy(
        session_id,
        _sender(server.stdin),
        poster,
        make_slot,
        lambda: _cpu_seconds(server.pid),
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=_pump, args=(client_in, proxy, server), daemon=True).start()
    for line in _lines(server.stdout.fileno()):
        proxy.from_server(line)
        _write_all(client_out, line)
    proxy.close()
    return server.wait()


def _pump(client_in: int, proxy: McpProxy, server: subprocess.Popen[bytes]) -> None:
    """From the client to the server, until the client is gone; then the server goes."""
    with contextlib.suppress(BrokenPipeError, ValueError):  # the server is gone already
        for line in _lines(client_in):
            proxy.from_client(line)
    assert server.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        server.stdin.close()
    for stop in (server.terminate, server.kill):
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
            return
        stop()


def _sender(pipe: IO[bytes]) -> Callable[[bytes], None]:
    lock = threading.Lock()

    def send(line: bytes) -> None:
        with lock, contextlib.suppress(BrokenPipeError, ValueError):
            pipe.write(line)
            pipe.flush()

    return send


def _lines(fd: int) -> Iterator[bytes]:
    """Lines with their ends, each as soon as it is there."""
    rest = b""
    while chunk := os.read(fd, _CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _write_all(fd: int, line: bytes) -> None:
    while line:
        line = line[os.write(fd, line) :]


def _read(line: bytes) -> Message | None:
    try:
        return msgspec.json.decode(line, type=Message)
    except (msgspec.DecodeError, ValueError):
        return None  # batches and nonsense are the server's to judge


def _params(message: Message) -> _Params:
    return _decoded(message.params, _Params) or _Params()


def _is_error(message: Message) -> bool:
    return (_decoded(message.result, _Result) or _Result()).is_error


def _decoded(raw: msgspec.Raw, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, ValueError):
        return None


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its dead children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S
