# SPDX-License-Identifier: Apache-2.0
"""Keeping hold of all processes of one tool call: in a control group, or by searching."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import Protocol

from mars.tools.cgroup import ToolGroup
from mars.tools.members import Orphans, ProcessStat, find_members, read_stat, signal_members

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_ROUNDS = 5
_DEAD = ("Z", "X")


class Containment(Protocol):
    """What the runtime needs of it."""

    orphans: Orphans
    """Its processes seen, but for the first, that may still have to be waited for."""

    def gives(self, controller: str) -> bool:
        """Whether the kernel keeps limits of this controller for the call."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to every process of the call."""
        ...

    def kill(self) -> int:
        """Kill every process of the call; how many were still there."""
        ...

    def sample_memory(self) -> int:
        """Memory of all its processes now (bytes); the largest sample is kept."""
        ...

    def usage(self, leader: resource.struct_rusage) -> tuple[float, int]:
        """CPU seconds and peak memory (bytes), given those of the first process."""
        ...

    def num_memory_kills(self) -> int:
        """How many of its processes the kernel ended for their memory; 0 if not known."""
        ...

    def pids(self) -> list[int]:
        """Its processes now."""
        ...


class GroupContainment:
    """The call is a control group: nothing leaves it, and it accounts for itself."""

    def __init__(self, group: ToolGroup, leader: int) -> None:
        self._group = group
        self._leader = leader
        self.orphans = Orphans()
        self._sampled_bytes = 0

    def gives(self, controller: str) -> bool:
        return self._group.gives(controller)

    def signal(self, number: int) -> None:
        self._group.signal(number)

    def kill(self) -> int:
        self.orphans.reap()
        seen = [stat for pid in self._group.pids() if (stat := read_stat(pid)) is not None]
        self.orphans.note(stat for stat in seen if stat.pid != self._leader)
        num_alive = sum(stat.state not in _DEAD for stat in seen)  # the dead are listed, too
        if num_alive:
            self._group.signal(signal.SIGKILL)
        return num_alive

    def sample_memory(self) -> int:
        now_bytes = _rss_bytes([read_stat(pid) for pid in self._group.pids()])
        self._sampled_bytes = max(self._sampled_bytes, now_bytes)
        return now_bytes

    def usage(self, leader: resource.struct_rusage) -> tuple[float, int]:
        cpu_seconds = self._group.cpu_seconds()
        peak_bytes = self._group.peak_bytes()
        return (
            leader.ru_utime + leader.ru_stime if cpu_seconds is None else cpu_seconds,
            _peak_bytes(leader, self._sampled_bytes) if peak_bytes is None else peak_bytes,
        )

    def num_memory_kills(self) -> int:
        return self._group.num_memory_kills()

    def pids(self) -> list[int]:
        return list(self._group.pids())


class SearchContainment:
    """The call is a kernel session and a mark; its processes are looked for in ``/proc``.

    Args:
        mark: In the environment of its processes.
        leader: Pid, and so session id, of its first process.
    """

    def __init__(self, mark: str, leader: int) -> None:
        self._mark = mark
        self._leader = leader
        stat = read_stat(leader)
        self._started_ticks = stat.start_ticks if stat else 0
        self.orphans = Orphans()
        self._sampled_bytes = 0

    def gives(self, controller: str) -> bool:
        return False

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._leader, number)
        escaped = [m for m in self._members() if m.session != self._leader]
        signal_members(escaped, number)

    def kill(self) -> int:
        """Stop all first, so that what forks cannot outrun the killing."""
        num_alive = 0
        for _ in range(_KILL_ROUNDS):
            members = self._members()
            alive = [m for m in members if m.state not in _DEAD]
            num_alive = max(num_alive, len(alive))
            signal_members(alive, signal.SIGSTOP)
            signal_members(alive, signal.SIGKILL)
            self.orphans.reap()
            if not alive:
                break
        return num_alive

    def sample_memory(self) -> int:
        now_bytes = _rss_bytes([*self._members()])
        self._sampled_bytes = max(self._sampled_bytes, now_bytes)
        return now_bytes

    def usage(self, leader: resource.struct_rusage) -> tuple[float, int]:
        cpu_seconds = leader.ru_utime + leader.ru_stime + self.orphans.cpu_seconds
        return cpu_seconds, _peak_bytes(leader, self._sampled_bytes)

    def num_memory_kills(self) -> int:
        return 0

    def pids(self) -> list[int]:
        return [member.pid for member in self._members()]

    def _members(self) -> list[ProcessStat]:
        members = find_members(self._leader, self._mark, self._started_ticks)
        self.orphans.note(member for member in members if member.pid != self._leader)
        return members


def _rss_bytes(stats: list[ProcessStat | None]) -> int:
    return sum(stat.rss_pages for stat in stats if stat is not None) * _PAGE_BYTES


def _peak_bytes(leader: resource.struct_rusage, sampled_bytes: int) -> int:
    """A process starts with its parent's peak as its own; only more than that is its doing."""
    inherited_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own_bytes = leader.ru_maxrss * 1024
    return max(sampled_bytes, own_bytes if own_bytes > inherited_bytes else 0)
