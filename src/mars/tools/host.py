# SPDX-License-Identifier: Apache-2.0
"""What the host says of itself: cores, CPU use, pressure, free memory."""

from __future__ import annotations

import os
from pathlib import Path

from mars.tools.cgroup import find_hierarchies

_PROC = Path("/proc")


def usable_cores() -> float:
    """Cores this process may use: its affinity, or its control group's quota if smaller."""
    cores = float(len(os.sched_getaffinity(0)))
    where = find_hierarchies()
    if where.v2 is not None:
        quota, _, period = _text(where.v2 / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            cores = min(cores, int(quota) / int(period))
    if "cpu" in where.v1:
        quota = _text(where.v1["cpu"] / "cpu.cfs_quota_us").strip()
        period = _text(where.v1["cpu"] / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit():
            cores = min(cores, int(quota) / int(period))
    return cores


def cpu_pressure(proc: Path = _PROC) -> float | None:
    """PSI ``some avg10`` of the CPUs as a fraction, or None where the kernel has no PSI."""
    for word in _text(proc / "pressure" / "cpu").split():
        name, _, value = word.partition("=")
        if name == "avg10":
            return float(value) / 100.0
    return None


def memory_bytes_free(proc: Path = _PROC) -> int | None:
    """Memory that can be had without swapping (``MemAvailable``)."""
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


class CpuMeter:
    """Share of all CPUs in use between two readings, from ``/proc/stat``."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._stat = proc / "stat"
        self._busy, self._total = self._read()

    def usage(self) -> float:
        """Busy share, 0..1, since the previous call; 0 if no tick has passed."""
        busy, total = self._read()
        passed = total - self._total
        share = (busy - self._busy) / passed if passed > 0 else 0.0
        self._busy, self._total = busy, total
        return min(1.0, max(0.0, share))

    def _read(self) -> tuple[int, int]:
        ticks = [int(t) for t in _text(self._stat).partition("\n")[0].split()[1:9]] or [0] * 8
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
