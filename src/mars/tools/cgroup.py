# SPDX-License-Identifier: Apache-2.0
"""Control groups for tool calls: version 2, version 1, mixed, or none.

Which controller is where is found out for each of them, and whether it may be used is
found out by using it. What cannot be had is said in ``ControlGroups.losses``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from mars.telemetry.cgroups import Hierarchies, find_hierarchies, read_text
from mars.tools.request import ToolLimits

_PERIOD_US = 100_000
_CLOSE_LOOKS, _CLOSE_LOOK_S = 50, 0.004
"""A killed process keeps its group for a few milliseconds."""


def _write(path: Path, value: object) -> bool:
    try:
        path.write_text(f"{value}\n")
    except OSError:
        return False
    return True


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


class ControlGroups:
    """Makes one group per tool call below an own base group in every usable hierarchy.

    Args:
        hierarchies: Where to make them; found by itself by default.
        name: Name of the base group.
    """

    def __init__(
        self, hierarchies: Hierarchies | None = None, name: str = f"mars-{os.getpid()}"
    ) -> None:
        where = find_hierarchies() if hierarchies is None else hierarchies
        for folder in (where.v2, *where.v1.values()):
            if folder is not None:
                _sweep_stale(folder)
        self._bases: dict[Path, set[str]] = {}
        """Base group -> what it gives; ``v2`` stands for kill and CPU accounting."""
        self._leftover: list[ToolGroup] = []
        if where.v2 is not None:
            self._open_v2(where.v2, name)
        for controller, folder in where.v1.items():
            base = folder / name
            if controller not in self.controllers and _make(base):
                self._bases.setdefault(base, set()).add(controller)

    @property
    def controllers(self) -> frozenset[str]:
        """What is usable: any of ``kill``, ``cpu``, ``cpuacct``, ``memory``, ``pids``."""
        return frozenset[str]().union(*self._bases.values())

    @property
    def losses(self) -> tuple[str, ...]:
        """What this machine cannot give, in words."""
        usable = self.controllers
        lost = {
            "kill": "stopping a tool searches /proc for its processes (no cgroup.kill): one that "
            "starts a new session and clears its environment may stay until the pool closes",
            "cpuacct": "CPU seconds count only processes that were waited for",
            "cpu": "no CPU weight or quota: tools get a lower scheduling priority (nice) instead",
            "memory": "memory limits are checked by sampling, and the peak is the sampled one",
            "pids": "no limit on the number of processes of a tool",
        }
        return tuple(text for name, text in lost.items() if name not in usable)

    def create(self, name: str, limits: ToolLimits) -> ToolGroup | None:
        """A new group with these limits, or None where the machine allows no group.

        It exists only in the hierarchies that this call needs: each costs time.
        """
        self.sweep()
        needed = {"kill", "cpuacct", "memory"}
        if limits.cpu_weight is not None or limits.cpu_cores is not None:
            needed.add("cpu")
        if limits.num_processes is not None:
            needed.add("pids")
        folders: dict[Path, set[str]] = {}
        for base, gives in self._bases.items():
            if not gives & needed:
                continue
            folder = base / name
            if _make(folder):
                folders[folder] = gives
                _limit(folder, gives, limits)
        return ToolGroup(folders) if folders else None

    def retire(self, group: ToolGroup) -> None:
        """Remove a group, now or as soon as its last process is gone."""
        if not group.remove():
            self._leftover.append(group)

    def sweep(self) -> None:
        """Remove the retired groups that have become empty."""
        self._leftover = [group for group in self._leftover if not group.remove()]

    def close(self) -> None:
        """Remove everything made; groups that still have processes stay."""
        for _ in range(_CLOSE_LOOKS):
            self.sweep()
            if not self._leftover:
                break
            time.sleep(_CLOSE_LOOK_S)
        for base in self._bases:
            with contextlib.suppress(OSError):
                base.rmdir()

    def _open_v2(self, folder: Path, name: str) -> None:
        base = folder / name
        if not _make(base):
            return
        offered = set(read_text(folder / "cgroup.controllers").split()) & {"cpu", "memory", "pids"}
        for controller in offered:
            _enable(folder, controller)
            _enable(base, controller)
        gives = {"kill", "cpuacct"} | set(read_text(base / "cgroup.subtree_control").split())
        if not (base / "cgroup.kill").exists():
            gives.discard("kill")
        self._bases[base] = gives


def _enable(folder: Path, controller: str) -> None:
    """Hand a controller to the groups below; an own group of one process steps aside."""
    control = folder / "cgroup.subtree_control"
    if controller in read_text(control).split() or _write(control, f"+{controller}"):
        return
    if read_text(folder / "cgroup.procs").split() == [str(os.getpid())]:
        aside = folder / "mars-runtime"
        if _make(aside) and _write(aside / "cgroup.procs", os.getpid()):
            _write(control, f"+{controller}")


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return True


def _sweep_stale(folder: Path) -> None:
    """Remove the empty groups of runtimes that were killed before they could."""
    for base in folder.glob("mars-*"):
        owner = base.name.rpartition("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            for group in (*base.glob("tool-*"), base):
                with contextlib.suppress(OSError):
                    group.rmdir()


def _limit(folder: Path, gives: set[str], limits: ToolLimits) -> None:
    is_v2 = "cpuacct" in gives and (folder / "cgroup.controllers").exists()
    values = _v2_values(limits) if is_v2 else _v1_values(limits)
    for (controller, file), value in values.items():
        if value is not None and controller in gives:
            _write(folder / file, value)


def _v2_values(limits: ToolLimits) -> dict[tuple[str, str], object]:
    cores = limits.cpu_cores
    return {
        ("cpu", "cpu.weight"): limits.cpu_weight,
        ("cpu", "cpu.max"): None if cores is None else f"{_quota_us(cores)} {_PERIOD_US}",
        ("memory", "memory.high"): limits.memory_high_bytes,
        ("memory", "memory.max"): limits.memory_bytes,
        ("memory", "memory.swap.max"): None if limits.memory_bytes is None else 0,
        ("memory", "memory.oom.group"): None if limits.memory_bytes is None else 1,
        ("pids", "pids.max"): limits.num_processes,
    }


def _v1_values(limits: ToolLimits) -> dict[tuple[str, str], object]:
    weight, cores = limits.cpu_weight, limits.cpu_cores
    return {
        ("cpu", "cpu.shares"): None if weight is None else max(2, weight * 1024 // 100),
        ("cpu", "cpu.cfs_period_us"): None if cores is None else _PERIOD_US,
        ("cpu", "cpu.cfs_quota_us"): None if cores is None else _quota_us(cores),
        ("memory", "memory.soft_limit_in_bytes"): limits.memory_high_bytes,
        ("memory", "memory.limit_in_bytes"): limits.memory_bytes,
        ("memory", "memory.memsw.limit_in_bytes"): limits.memory_bytes,
        ("pids", "pids.max"): limits.num_processes,
    }


def _quota_us(cores: float) -> int:
    return max(1000, int(cores * _PERIOD_US))


class ToolGroup:
    """The control group of one tool call, over all hierarchies it exists in."""

    def __init__(self, folders: dict[Path, set[str]]) -> None:
        self._folders = folders

    def gives(self, controller: str) -> bool:
        """Whether this group has ``controller``."""
        return any(controller in gives for gives in self._folders.values())

    def add(self, pid: int) -> bool:
        """Put a process, and all it will start, into the group."""
        is_added = True
        for folder in self._folders:
            is_added = _write(folder / "cgroup.procs", pid) and is_added
        return is_added

    def pids(self) -> list[int]:
        """Processes in it, wherever they went; no two hierarchies differ in that."""
        folder = next(iter(self._folders))
        return [int(pid) for pid in read_text(folder / "cgroup.procs").split()]

    def signal(self, number: int) -> None:
        """Send a signal to every process in it; SIGKILL at once where the kernel can."""
        if number == signal.SIGKILL:
            for folder, gives in self._folders.items():
                if "kill" in gives and _write(folder / "cgroup.kill", 1):
                    return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def cpu_seconds(self) -> float | None:
        """User and system time of all its processes, dead ones too; None: not known."""
        for folder, gives in self._folders.items():
            if "cpuacct" not in gives:
                continue
            if (folder / "cpuacct.usage").exists():
                return int(read_text(folder / "cpuacct.usage") or 0) / 1e9
            return _field(read_text(folder / "cpu.stat"), "usage_usec") / 1e6
        return None

    def peak_bytes(self) -> int | None:
        """Most memory (with file cache) it had at once; None: not known."""
        for folder, gives in self._folders.items():
            if "memory" not in gives:
                continue
            text = read_text(folder / "memory.peak") or read_text(
                folder / "memory.max_usage_in_bytes"
            )
            return int(text) if text else None
        return None

    def num_memory_kills(self) -> int:
        """How many of its processes the kernel ended for their memory."""
        for folder, gives in self._folders.items():
            if "memory" in gives:
                text = read_text(folder / "memory.events") or read_text(
                    folder / "memory.oom_control"
                )
                return _field(text, "oom_kill")
        return 0

    def remove(self) -> bool:
        """Remove it; False while a process is in it."""
        left: dict[Path, set[str]] = {}
        for folder, gives in self._folders.items():
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                left[folder] = gives
        self._folders = left or self._folders
        return not left
