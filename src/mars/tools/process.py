# SPDX-License-Identifier: Apache-2.0
"""Runs one tool call as real processes: contained, bounded, measured, and gone when it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import time
from typing import Literal, cast

from mars.tools.capture import CaptureProtocol
from mars.tools.cgroup import ControlGroups
from mars.tools.containment import Containment, GroupContainment, SearchContainment
from mars.tools.disk import DiskFloor
from mars.tools.members import MARK, Orphans, adopt_orphans
from mars.tools.request import ToolRequest, ToolResult

_GATE = 'read -r _ && exec "$@"'
"""Waits for a line on stdin, so that limits are in place before the command exists."""
_SETTLE_S = 1.0
"""Longest wait for pipes to close and killed processes to vanish after the end."""
_DRAIN_S = 0.05
"""The same where processes in the background may keep the pipes open for good."""
MEMORY_CHECK_S = 0.1
_MEMORY_LOOK_S = 0.5
"""Where the kernel does not account memory: interval of samples with and without a limit."""
DISK_CHECK_S = 0.25
_KILL_CHECK_S = 0.002
_NICE = 5
_FILE_TOO_LARGE = (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class ToolRunner:
    """Starts tool calls in control groups where the machine allows, else finds their
    processes through ``/proc``.

    Args:
        groups: Control groups to use; ``None``: none. Found by itself by default.
        cores: Cores that tools may run on; ``None``: all that this process may use.
    """

    def __init__(
        self,
        groups: ControlGroups | Literal["auto"] | None = "auto",
        cores: frozenset[int] | None = None,
    ) -> None:
        self.cores = cores
        self.groups = ControlGroups() if isinstance(groups, str) else groups
        can_kill = self.groups is not None and "kill" in self.groups.controllers
        self.losses = self.groups.losses if self.groups else ("no control groups",)
        self._adopts = not can_kill and adopt_orphans()
        if not can_kill and not self._adopts:
            self.losses += ("orphans of tools cannot be adopted: they may outlive their call",)
        self._numbers = itertools.count()
        self._orphans = Orphans()

    async def run(self, request: ToolRequest) -> ToolResult:
        """Run a call to its end; when cancelled, its processes are killed first.

        A command that cannot be started gives exit code 127 (not found) or 126, as a
        shell does. Never raises for what the command does.
        """
        mark = f"{os.getpid()}-{next(self._numbers)}"
        group = self.groups.create(f"tool-{mark}", request.limits) if self.groups else None
        try:
            process = _spawn(request, mark)
        except OSError as error:
            if self.groups is not None and group is not None:
                self.groups.retire(group)
            return not_started(request, error)
        if self.cores is not None:
            os.sched_setaffinity(process.pid, self.cores)
        is_grouped = group is not None and group.add(process.pid)
        call = _RunningCall(
            request,
            process,
            GroupContainment(group, process.pid)
            if group is not None and is_grouped
            else SearchContainment(mark, process.pid),
        )
        try:
            return await call.finish()
        finally:
            call.destroy()
            self._orphans.take(call.containment.orphans)
            self._orphans.reap()
            if self.groups is not None and group is not None:
                self.groups.retire(group)

    def close(self) -> None:
        """Remove the control groups; call when nothing runs any more."""
        self._orphans.reap()
        if self._adopts:
            adopt_orphans(False)
        if self.groups is not None:
            self.groups.close()


def not_started(request: ToolRequest, error: OSError) -> ToolResult:
    """The result of a command that could not be started, with a shell's exit codes."""
    code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    notice = f"could not start {request.argv[0]!r}: {error.strerror or error}"
    if error.filename is not None and str(error.filename) != request.argv[0]:
        notice += f" ({error.filename})"
    return ToolResult(
        exit_code=code,
        duration_s=0.0,
        stderr=f"mars: {notice}\n".encode(),
        notices=(notice,),
    )


def _spawn(request: ToolRequest, mark: str) -> subprocess.Popen[bytes]:
    own = {"MARS_SESSION": request.session_id, "MARS_TOOL_CALL": request.tool_call_id, MARK: mark}
    return subprocess.Popen(
        ["/bin/sh", "-c", _GATE, "mars", *request.argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=request.cwd,
        env={**os.environ, **(request.env or {}), **own},
        start_new_session=True,
    )


class _StdinProtocol(asyncio.BaseProtocol):
    """Knows whether the pipe is still open, so that it can be closed exactly once."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def close(self) -> None:
        """Close the pipe; what is not written yet is dropped."""
        if self._transport is not None:
            self._transport.abort()


class _RunningCall:
    """One started call; :meth:`finish` brings it to its end."""

    def __init__(
        self, request: ToolRequest, process: subprocess.Popen[bytes], containment: Containment
    ) -> None:
        self._request = request
        self._process = process
        self.containment = containment
        self._loop = asyncio.get_running_loop()
        self._notices: list[str] = []
        self._is_timed_out = False
        self._is_memory_exceeded = False
        self._is_ended_early = False
        limit_bytes = request.limits.output_bytes
        self._outputs = (CaptureProtocol(limit_bytes), CaptureProtocol(limit_bytes))
        self._stdin = _StdinProtocol()
        self._started_at = time.monotonic()
        self._exited: asyncio.Future[resource.struct_rusage] = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)

    async def finish(self) -> ToolResult:
        """Open the gate, wait for the end or bring it about, and account for it."""
        self._apply_limits()
        await self._connect()
        watchers = [
            asyncio.ensure_future(watch()) for watch in (self._watch_memory, self._watch_disk)
        ]
        try:
            usage = await self._wait_or_stop()
        finally:
            for watcher in watchers:
                watcher.cancel()
        duration_s = time.monotonic() - self._started_at
        num_left = await self._clear()
        settle_s = _DRAIN_S if self._request.keeps_background else _SETTLE_S
        await asyncio.wait([output.closed for output in self._outputs], timeout=settle_s)
        return self._result(usage, duration_s, num_left)

    def destroy(self) -> None:
        """Leave nothing behind, whatever happened: no process, pipe or zombie."""
        if not self._exited.done():
            self._loop.remove_reader(self._pidfd)
            self.containment.kill()
            _, status, _ = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._exited.cancel()
        os.close(self._pidfd)
        for output in self._outputs:
            output.close()
        self._stdin.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._exited.set_result(usage)

    def _apply_limits(self) -> None:
        limits, pid = self._request.limits, self._process.pid
        if limits.file_bytes is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
        if limits.cpu_weight is not None and not self.containment.gives("cpu"):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, pid, own + (_NICE if limits.cpu_weight < 100 else 0))

    async def _connect(self) -> None:
        """Read both outputs; hand over stdin, whose first line opens the gate."""
        process = self._process
        for output, pipe in zip(self._outputs, (process.stdout, process.stderr), strict=True):
            assert pipe is not None
            await self._loop.connect_read_pipe(lambda output=output: output, pipe)
        process.stdout = process.stderr = None
        assert process.stdin is not None
        stdin, _ = await self._loop.connect_write_pipe(lambda: self._stdin, process.stdin)
        process.stdin = None
        stdin.write(b"\n" + self._request.stdin)
        stdin.write_eof()

    async def _wait_or_stop(self) -> resource.struct_rusage:
        request = self._request
        await asyncio.wait({self._exited}, timeout=request.timeout_s)
        if not self._exited.done():
            self._is_timed_out = True
            self._notices.append(
                f"stopped after its timeout of {request.timeout_s:g} s: split it, run it in the "
                "background, or ask for a longer timeout"
            )
            self.containment.signal(signal.SIGTERM)
            self.containment.signal(signal.SIGCONT)
            await asyncio.wait({self._exited}, timeout=request.grace_s)
            if not self._exited.done():
                self.containment.kill()
        return await asyncio.shield(self._exited)

    async def _clear(self) -> int:
        """Stop what is left of it; how many processes that were."""
        if self._request.keeps_background and not self._is_timed_out:
            return 0
        num_left = num_alive = self.containment.kill()
        deadline = self._loop.time() + _SETTLE_S
        while num_alive and self._loop.time() < deadline:
            await asyncio.sleep(_KILL_CHECK_S)
            num_alive = self.containment.kill()
        is_ended = self._is_timed_out or self._is_memory_exceeded or self._is_ended_early
        if num_left and not is_ended:
            self._notices.append(f"{num_left} process(es) left in the background were stopped")
        return num_left

    async def _watch_memory(self) -> None:
        """Where the kernel does not keep the limit: look, and end it when it is over."""
        limit_bytes = self._request.limits.memory_bytes
        if self.containment.gives("memory"):
            return
        while True:
            used_bytes = self.containment.sample_memory()
            if limit_bytes is not None and used_bytes > limit_bytes:
                self._is_memory_exceeded = True
                self.containment.kill()
                return
            await asyncio.sleep(_MEMORY_LOOK_S if limit_bytes is None else MEMORY_CHECK_S)

    async def _watch_disk(self) -> None:
        floor = DiskFloor(self._request.cwd, self._request.limits.disk_floor_bytes)
        while floor.is_kept:
            await asyncio.sleep(DISK_CHECK_S)
            if floor.is_broken_by(self.containment.pids()):
                self._is_ended_early = True
                self._notices.append(floor.notice())
                self.containment.kill()
                return

    def _result(
        self, usage: resource.struct_rusage, duration_s: float, num_left: int
    ) -> ToolResult:
        cpu_seconds, peak_bytes = self.containment.usage(usage)
        self._explain(peak_bytes)
        stdout, stderr = (output.capture.value() for output in self._outputs)
        words = "".join(f"mars: {notice}\n" for notice in self._notices).encode()
        return ToolResult(
            exit_code=self._process.returncode,
            duration_s=duration_s,
            cpu_seconds=cpu_seconds,
            peak_bytes=peak_bytes,
            is_timed_out=self._is_timed_out,
            is_memory_exceeded=self._is_memory_exceeded,
            num_left_behind=num_left,
            stdout=stdout,
            stderr=stderr + (b"\n" if words and stderr and stderr[-1:] != b"\n" else b"") + words,
            notices=tuple(self._notices),
        )

    def _explain(self, peak_bytes: int) -> None:
        """Say in words what the limits did to it."""
        limits = self._request.limits
        if self.containment.num_memory_kills():
            self._is_memory_exceeded = True
        if self._is_memory_exceeded and limits.memory_bytes is not None:
            self._notices.append(
                f"ended for its memory: it used {_mib(peak_bytes)} and may use "
                f"{_mib(limits.memory_bytes)}; work on less at once or with fewer parallel workers"
            )
        if self._process.returncode in _FILE_TOO_LARGE and limits.file_bytes is not None:
            self._notices.append(
                f"ended because a file it wrote passed the limit of {_mib(limits.file_bytes)}"
            )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
