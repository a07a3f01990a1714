# SPDX-License-Identifier: Apache-2.0
"""What the host says of itself: cores, CPU use, pressure, free memory.

In a control group with a CPU quota (a container) the group's own figures count, since the
rest of the machine is not ours to use; else the machine's. Nothing that the kernel does
not tell is read as zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mars.telemetry.cgroups import Hierarchies, find_hierarchies, read_text

_PROC = Path("/proc")


def cpu_quota(where: Hierarchies) -> float | None:
    """Cores that the control group's quota allows; None without one."""
    found: list[float] = []
    if where.v2 is not None:
        quota, _, period = read_text(where.v2 / "cpu.max").partition(" ")
        found += _ratio(quota, period)
    if "cpu" in where.v1:
        folder = where.v1["cpu"]
        found += _ratio(
            read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        )
    return min(found, default=None)


def usable_cores(where: Hierarchies | None = None) -> float:
    """Cores this process may use: its affinity, or its control group's quota if smaller."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = cpu_quota(find_hierarchies() if where is None else where)
    return cores if quota is None else min(cores, quota)


class HostMeter:
    """Readings of the CPUs and the memory that this process may use.

    Args:
        proc: where the kernel's files are.
        where: the control groups; None: this process's.
        clock: seconds, for the use of a quota.
    """

    def __init__(
        self,
        proc: Path = _PROC,
        where: Hierarchies | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._where = find_hierarchies() if where is None else where
        self._clock = clock
        machine = float(len(os.sched_getaffinity(0)))
        quota = cpu_quota(self._where)
        self.is_bounded = quota is not None and quota < machine
        """Whether a quota, not the machine, is what there is."""
        self.cores = min(machine, quota or machine)
        self._ticks = self._read_ticks()
        self._group = self._read_group()

    def usage(self) -> float | None:
        """Busy share of the cores, 0..1, since the previous call; None if not known."""
        before, self._ticks = self._ticks, self._read_ticks()
        group, self._group = self._group, self._read_group()
        if self.is_bounded and group is not None and self._group is not None:
            passed_s = self._group[1] - group[1]
            used_s = self._group[0] - group[0]
            return _share(used_s, passed_s * self.cores)
        if before is None or self._ticks is None:
            return None
        return _share(self._ticks[0] - before[0], self._ticks[1] - before[1])

    def pressure(self) -> float | None:
        """PSI ``some avg10`` of the CPUs, 0..1; None where the kernel has no PSI."""
        if self.is_bounded and self._where.v2 is not None:
            own = _avg10(read_text(self._where.v2 / "cpu.pressure"))
            if own is not None:
                return own
        return _avg10(read_text(self._proc / "pressure" / "cpu"))

    def memory_bytes_free(self) -> int | None:
        """Memory that can be had without swapping, within the control group's limit."""
        free = [self._machine_bytes(), self._group_bytes()]
        return min((count for count in free if count is not None), default=None)

    def _machine_bytes(self) -> int | None:
        for line in read_text(self._proc / "meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None

    def _group_bytes(self) -> int | None:
        """What a limit leaves; the page cache counts as free, as it does for the machine."""
        if self._where.v2 is not None:
            folder, limit_name, used_name = self._where.v2, "memory.max", "memory.current"
        elif "memory" in self._where.v1:
            folder = self._where.v1["memory"]
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            return None
        limit, used = read_text(folder / limit_name).strip(), read_text(folder / used_name).strip()
        if not limit.isdigit() or not used.isdigit():
            return None
        cache = _field(read_text(folder / "memory.stat"), "inactive_file") or 0
        return max(0, int(limit) - int(used) + cache)

    def _read_ticks(self) -> tuple[int, int] | None:
        ticks = [int(t) for t in read_text(self._proc / "stat").partition("\n")[0].split()[1:9]]
        if len(ticks) < 5:
            return None
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks)

    def _read_group(self) -> tuple[float, float] | None:
        """CPU seconds of the group so far, and the time."""
        if self._where.v2 is not None:
            used_us = _field(read_text(self._where.v2 / "cpu.stat"), "usage_usec")
            return None if used_us is None else (used_us / 1e6, self._clock())
        if "cpuacct" in self._where.v1:
            used_ns = read_text(self._where.v1["cpuacct"] / "cpuacct.usage").strip()
            return (int(used_ns) / 1e9, self._clock()) if used_ns.isdigit() else None
        return None


def _ratio(quota: str, period: str) -> list[float]:
    quota, period = quota.strip(), period.strip()
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() else []


def _share(used: float, passed: float) -> float:
    return min(1.0, max(0.0, used / passed)) if passed > 0 else 0.0


def _avg10(text: str) -> float | None:
    for word in text.split():
        name, _, value = word.partition("=")
        if name == "avg10":
            return float(value) / 100.0
    return None


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
