# SPDX-License-Identifier: Apache-2.0
"""Runs one command in the foreground under the tool runtime, with its own terminal and pipes.

For agents that start their tools themselves: the command keeps stdin, stdout and stderr of
the caller, and still gets limits, a timeout for all its processes, and an account of what
it used, which is reported to the gateway. The gateway being away never stops a command.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Literal, Self

import msgspec

from mars.core.events import Event, ToolFinished, ToolQueued, ToolStarted
from mars.telemetry.codec import Record, to_map
from mars.tools.cgroup import ControlGroups, ToolGroup
from mars.tools.containment import Containment, GroupContainment, SearchContainment
from mars.tools.disk import DiskFloor
from mars.tools.members import MARK, adopt_orphans
from mars.tools.process import DISK_CHECK_S, MEMORY_CHECK_S, not_started
from mars.tools.request import ToolRequest, ToolResult
from mars.tools.slot_client import SlotClient

POST_TIMEOUT_S = 2.0
"""Longest a command's start or end report may take (each; chosen)."""
_CLEAR_S, _CLEAR_CHECK_S = 1.0, 0.005
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class EventPoster:
    """Posts events to a gateway; what goes wrong is told once and then ignored.

    Args:
        url: Of the gateway, as in ``http://127.0.0.1:8000``; ``None``: post nothing.
        key: API key, if the gateway asks for one.
        warn: Takes the one line that says the gateway is away.
    """

    def __init__(
        self, url: str | None, key: str | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self._url = urllib.parse.urlsplit(url) if url else None
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._warn = warn or warn_on_stderr
        self._has_failed = False

    def post(self, events: list[Event]) -> None:
        """Post them now, unless an earlier post failed."""
        if self._url is None or self._has_failed:
            return
        body = msgspec.json.encode([to_map(Record(0, "tools", event)) for event in events])
        try:
            status = self._send(self._url, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._fail(str(error) or type(error).__name__)
        else:
            if status != http.client.OK:
                self._fail(f"it answered {status}")

    def _send(self, url: urllib.parse.SplitResult, body: bytes) -> int:
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=POST_TIMEOUT_S)
        with contextlib.closing(connection):
            path = url.path.rstrip("/") + "/mars/v1/events"
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            response.read()
            return response.status

    def _fail(self, reason: str) -> None:
        assert self._url is not None
        self._has_failed = True
        self._warn(
            f"the gateway at {self._url.netloc} was not told of this command ({reason}); "
            "it runs all the same. Set MARS_GATEWAY to the gateway's address, or unset it"
        )


def warn_on_stderr(text: str) -> None:
    """One line for whoever reads the command's output."""
    sys.stderr.write(f"mars: warning: {text}\n")


def run_in_foreground(
    request: ToolRequest,
    poster: EventPoster,
    groups: ControlGroups | None = None,
    slot: SlotClient | None = None,
    cores: frozenset[int] | None = None,
) -> ToolResult:
    """Run a command to its end with the caller's own stdin, stdout and stderr.

    On a terminal it stays in the foreground process group, so that Ctrl-C reaches it;
    elsewhere it gets its own session. Signals sent to the caller are passed on. Call from
    the main thread of a process that does nothing else.

    Args:
        request: The call; its ``stdin`` and ``limits.output_bytes`` have no meaning here.
        poster: Told of its start (while it runs) and of its end.
        groups: Control groups to use; ``None``: none.
        slot: Waited for before it starts; its server then reports in place of ``poster``, and
            says on which cores it runs.
        cores: It may run on; ``None``: all that this process may use.
    """
    queued_at = time.monotonic()
    names = (request.session_id, request.tool_call_id, request.tool_class)
    if slot is None or not slot.acquire(*names):
        return _run(request, poster, groups, queued_at, cores)
    result = ToolResult(exit_code=-signal.SIGKILL, duration_s=0.0)
    try:
        result = _run(request, EventPoster(None), groups, queued_at, slot.cores)
    finally:
        slot.release(result)
    return result


def _run(
    request: ToolRequest,
    poster: EventPoster,
    groups: ControlGroups | None,
    queued_at: float,
    cores: frozenset[int] | None,
) -> ToolResult:
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    group = groups.create(f"tool-{mark}", request.limits) if groups else None
    if group is None or not group.gives("kill"):
        adopt_orphans()
    with _Forwarding() as forwarding:
        try:
            process, is_grouped = _spawn(request, group, mark, cores)
        except OSError as error:
            if groups is not None and group is not None:
                groups.retire(group)
            return not_started(request, error)
        forwarding.attach(process.pid)
        started_at = time.monotonic()
        reporter = threading.Thread(
            target=poster.post, args=(_begun(request, queued_at, started_at),), daemon=True
        )
        reporter.start()
        containment: Containment = (
            GroupContainment(group, process.pid)
            if group is not None and is_grouped
            else SearchContainment(mark, process.pid)
        )
        result = _attend(request, process, containment, started_at)
    reporter.join(POST_TIMEOUT_S)
    if groups is not None and group is not None:
        groups.retire(group)
    poster.post([_ended(request, result)])
    return result


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _spawn(
    request: ToolRequest, group: ToolGroup | None, mark: str, cores: frozenset[int] | None
) -> tuple[subprocess.Popen[bytes], bool]:
    """The process, and whether it went into its group before the command began."""
    limits = request.limits
    told, tell = os.pipe()

    def confine() -> None:  # in the child; safe, for there is one thread yet
        if group is not None and group.add(os.getpid()):
            os.write(tell, b"1")
        if cores is not None:
            os.sched_setaffinity(0, cores)
        if limits.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))

    own = {"MARS_SESSION": request.session_id, "MARS_TOOL_CALL": request.tool_call_id, MARK: mark}
    try:
        process = subprocess.Popen(
            request.argv,
            cwd=request.cwd,
            env={**os.environ, **(request.env or {}), **own},
            start_new_session=not _has_terminal(),
            preexec_fn=confine,  # noqa: PLW1509
        )
    finally:
        os.close(tell)
        is_grouped = os.read(told, 1) == b"1"
        os.close(told)
    return process, is_grouped


class _Forwarding:
    """Passes on the signals sent to us, also those that come before there is a command."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        self._before = {n: signal.signal(n, self._forward) for n in _FORWARDED}
        return self

    def __exit__(self, *raised: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def attach(self, pid: int) -> None:
        """Pass them on to this process from now on."""
        self._pid = pid
        for number in self._waiting:
            self._forward(number, None)

    def _forward(self, number: int, _frame: object) -> None:
        if self._pid is None:
            self._waiting.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            if not _has_terminal():
                os.killpg(self._pid, number)
            elif number not in (signal.SIGINT, signal.SIGQUIT):  # the terminal sent it these
                os.kill(self._pid, number)


def _attend(
    request: ToolRequest,
    process: subprocess.Popen[bytes],
    containment: Containment,
    started_at: float,
) -> ToolResult:
    """Wait for the end, or bring it about at the timeout."""
    notices: list[str] = []
    floor = DiskFloor(request.cwd, request.limits.disk_floor_bytes)
    end = _wait(process.pid, request.timeout_s, containment, request.limits.memory_bytes, floor)
    is_timed_out = end == "timeout"
    if is_timed_out:
        notices.append(f"stopped after its timeout of {request.timeout_s:g} s")
        containment.signal(signal.SIGTERM)
        containment.signal(signal.SIGCONT)
        end = _wait(process.pid, request.grace_s)
    if end != "exit":
        containment.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    duration_s = time.monotonic() - started_at
    num_left = 0
    if is_timed_out or not request.keeps_background:
        num_left = _clear(containment)
    if end == "disk":
        notices.append(floor.notice())
    elif num_left and not is_timed_out:
        notices.append(f"{num_left} process(es) left in the background were stopped")
    cpu_seconds, peak_bytes = containment.usage(usage)
    is_memory_exceeded = end == "memory" or containment.num_memory_kills() > 0
    if is_memory_exceeded and request.limits.memory_bytes is not None:
        limit_mib = request.limits.memory_bytes / 2**20
        notices.append(f"ended for its memory: it may use {limit_mib:.0f} MiB")
    return ToolResult(
        exit_code=process.returncode,
        duration_s=duration_s,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak_bytes,
        is_timed_out=is_timed_out,
        is_memory_exceeded=is_memory_exceeded,
        num_left_behind=num_left,
        notices=tuple(notices),
    )


def _wait(
    pid: int,
    timeout_s: float | None,
    containment: Containment | None = None,
    memory_bytes: int | None = None,
    floor: DiskFloor | None = None,
) -> Literal["exit", "timeout", "memory", "disk"]:
    """What came first. The process stays to be waited for.

    Memory is looked at only where the kernel does not keep the limit.
    """
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    watched = None if containment is None or containment.gives("memory") else containment
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            if watched is not None and memory_bytes is not None:
                if watched.sample_memory() > memory_bytes:
                    return "memory"
                left_s = min(left_s, MEMORY_CHECK_S)
            if containment is not None and floor is not None and floor.is_kept:
                if floor.is_broken_by(containment.pids()):
                    return "disk"
                left_s = min(left_s, DISK_CHECK_S)
            if poll.poll(None if left_s == math.inf else math.ceil(left_s * 1000.0)):
                return "exit"
        return "timeout"
    finally:
        os.close(fd)


def _clear(containment: Containment) -> int:
    num_left = num_alive = containment.kill()
    deadline = time.monotonic() + _CLEAR_S
    while num_alive and time.monotonic() < deadline:
        time.sleep(_CLEAR_CHECK_S)
        num_alive = containment.kill()
    return num_left


def _begun(request: ToolRequest, queued_at: float, started_at: float) -> list[Event]:
    return [
        ToolQueued(
            time=queued_at,
            session_id=request.session_id,
            tool_call_id=request.tool_call_id,
            tool_name=request.tool_class,
        ),
        ToolStarted(
            time=started_at,
            session_id=request.session_id,
            tool_call_id=request.tool_call_id,
            tool_name=request.tool_class,
            queued_s=started_at - queued_at,
        ),
    ]


def _ended(request: ToolRequest, result: ToolResult) -> ToolFinished:
    return ToolFinished(
        time=time.monotonic(),
        session_id=request.session_id,
        tool_call_id=request.tool_call_id,
        tool_name=request.tool_class,
        duration_s=result.duration_s,
        cpu_seconds=result.cpu_seconds,
        peak_bytes=result.peak_bytes,
        exit_code=result.exit_code,
        is_timed_out=result.is_timed_out,
    )
