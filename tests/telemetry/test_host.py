# SPDX-License-Identifier: Apache-2.0
"""Host readings are what the kernel says, and "not known" where it says nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mars.telemetry.cgroups import Hierarchies
from mars.telemetry.host import HostMeter, cpu_quota, usable_cores

NOWHERE = Hierarchies(None, {})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_usage_is_the_busy_share_since_the_last_reading(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\n")
    meter = HostMeter(tmp_path, NOWHERE)
    stat.write_text("cpu  130 0 110 750 110 0 0 0 0 0\n")
    assert meter.usage() == pytest.approx(0.4)
    assert meter.usage() == 0.0


def test_usage_that_the_kernel_does_not_tell_is_not_known(tmp_path: Path) -> None:
    meter = HostMeter(tmp_path, NOWHERE)
    assert meter.usage() is None
    (tmp_path / "stat").write_text("cpu  130 0 110 750 110 0 0 0 0 0\n")
    assert meter.usage() is None  # the first reading has nothing to compare with


def test_pressure_is_a_fraction_and_none_where_there_is_none(tmp_path: Path) -> None:
    meter = HostMeter(tmp_path, NOWHERE)
    assert meter.pressure() is None
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n")
    assert meter.pressure() == pytest.approx(0.125)
    (tmp_path / "pressure" / "cpu").write_text("")
    assert meter.pressure() is None


def test_free_memory_is_in_bytes_and_none_where_unknown(tmp_path: Path) -> None:
    meter = HostMeter(tmp_path, NOWHERE)
    assert meter.memory_bytes_free() is None
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    2048 kB\n")
    assert meter.memory_bytes_free() == 2048 * 1024


def in_v2(group: Path, cpu_s: float) -> Hierarchies:
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "cpu.stat").write_text(f"usage_usec {int(cpu_s * 1e6)}\nuser_usec 5\n")
    (group / "cpu.pressure").write_text("some avg10=80.00 avg60=0 avg300=0 total=1\n")
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 300000\n")
    return Hierarchies(group, {})


def in_v1(group: Path, cpu_s: float) -> Hierarchies:
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpuacct.usage").write_text(f"{int(cpu_s * 1e9)}\n")
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.usage_in_bytes").write_text("900000\n")
    (group / "memory.stat").write_text("inactive_file 300000\n")
    return Hierarchies(None, dict.fromkeys(("cpu", "cpuacct", "memory"), group))


@pytest.mark.parametrize("made", [in_v2, in_v1])
def test_within_a_quota_the_groups_own_figures_count(
    tmp_path: Path, made: Callable[[Path, float], Hierarchies]
) -> None:
    proc, group, clock = tmp_path / "proc", tmp_path / "group", Clock()
    proc.mkdir()
    group.mkdir()
    (proc / "stat").write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    (proc / "meminfo").write_text("MemAvailable: 999999 kB\n")
    where = made(group, 10.0)
    meter = HostMeter(proc, where, clock)
    assert meter.is_bounded
    assert (cpu_quota(where), meter.cores, usable_cores(where)) == (0.5, 0.5, 0.5)
    clock.now = 10.0
    made(group, 14.0)  # 4 CPU seconds of the 5 that half a core gives
    assert meter.usage() == pytest.approx(0.8)
    assert meter.memory_bytes_free() == 400_000
    assert meter.pressure() == (0.8 if where.v2 else None)


def test_a_group_without_limits_leaves_the_machines_figures(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "stat").write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    (tmp_path / "meminfo").write_text("MemAvailable: 2 kB\n")
    meter = HostMeter(tmp_path, Hierarchies(tmp_path, {}))
    assert not meter.is_bounded
    (tmp_path / "stat").write_text("cpu  50 0 0 1050 0 0 0 0 0 0\n")
    assert meter.usage() == 0.5
    assert meter.memory_bytes_free() == 2048
