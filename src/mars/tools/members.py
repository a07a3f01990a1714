# SPDX-License-Identifier: Apache-2.0
"""Finding the processes of a tool call without control groups, through ``/proc``.

A process belongs to a call if it is in the call's kernel session, if its environment
carries the call's mark, or if it descends from one that does. Processes that outlive
their parent are handed to the runtime (child subreaper), so that none is lost from sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MARK = "MARS_TOOL_RUN"
"""Environment variable with the call's mark."""
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
_KERNEL = 2
"""Parent of the kernel's own threads, which have no environment."""
_EXEC_LOOKS, _EXEC_LOOK_S = 3, 0.0005
"""In the middle of an exec the environment is empty for a moment: look again."""


class ProcessStat(NamedTuple):
    """The few fields of ``/proc/PID/stat`` that say who a process is."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int
    rss_pages: int


def adopt_orphans(is_wanted: bool = True) -> bool:
    """Make orphans of this process's descendants its own children, or stop doing so."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0) == 0


def read_stat(pid: int) -> ProcessStat | None:
    """Stat of one process, or None if it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return ProcessStat(
        pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]), int(fields[21])
    )


def find_members(session: int, mark: str, started_ticks: int) -> list[ProcessStat]:
    """Processes (zombies too) of the call whose leader was ``session``.

    Args:
        session: Kernel session id: the pid of the call's first process.
        mark: Value of :data:`MARK` in its environment.
        started_ticks: Start of the call; older processes are not looked at.
    """
    young = {
        stat.pid: stat
        for stat in map(read_stat, _pids())
        if stat is not None and stat.start_ticks >= started_ticks
    }
    wanted = f"{MARK}={mark}".encode()
    found = {
        pid for pid, stat in young.items() if stat.session == session or _has_mark(stat, wanted)
    }
    while grown := {p for p, s in young.items() if p not in found and s.parent in found}:
        found |= grown
    return [young[pid] for pid in sorted(found)]


def signal_members(members: list[ProcessStat], number: int) -> int:
    """Send a signal to those alive; how many there were."""
    count = 0
    for stat in members:
        if stat.state != "Z":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(stat.pid, number)
                count += 1
    return count


class Orphans:
    """Processes of tools that may be handed to us when their parents die: they must be
    waited for, or they stay as zombies. Others' children are never touched."""

    def __init__(self) -> None:
        self._start_ticks: dict[int, int] = {}
        self.cpu_seconds = 0.0
        self.peak_bytes = 0

    def note(self, stats: Iterable[ProcessStat]) -> None:
        """Remember processes seen."""
        self._start_ticks.update({stat.pid: stat.start_ticks for stat in stats})

    def take(self, other: Orphans) -> None:
        """Take over what another has not collected yet."""
        self._start_ticks.update(other._start_ticks)

    def reap(self) -> None:
        """Collect those that are dead and ours, and forget those that are gone."""
        for pid, start_ticks in list(self._start_ticks.items()):
            stat = read_stat(pid)
            if stat is None or stat.start_ticks != start_ticks:
                del self._start_ticks[pid]
            elif stat.state == "Z" and stat.parent == os.getpid():
                del self._start_ticks[pid]
                _, _, usage = os.wait4(pid, 0)
                self.cpu_seconds += usage.ru_utime + usage.ru_stime
                self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208 - 3x faster


def _has_mark(stat: ProcessStat, wanted: bytes) -> bool:
    if stat.state == "Z" or stat.parent == _KERNEL:
        return False
    environ = _PROC / str(stat.pid) / "environ"
    try:
        for _ in range(_EXEC_LOOKS):
            if text := environ.read_bytes():
                return wanted in text.split(b"\0")
            time.sleep(_EXEC_LOOK_S)
    except OSError:
        pass
    return False
