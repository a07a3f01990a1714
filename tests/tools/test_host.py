# SPDX-License-Identifier: Apache-2.0
"""Host readings are what the kernel says, and "not known" where it says nothing."""

from pathlib import Path

import pytest

from mars.tools.host import CpuMeter, cpu_pressure, memory_bytes_free, usable_cores
from mars.tools.slots import default_slots


def test_usage_is_the_busy_share_since_the_last_reading(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\n")
    meter = CpuMeter(tmp_path)
    stat.write_text("cpu  130 0 110 750 110 0 0 0 0 0\n")
    assert meter.usage() == pytest.approx(0.4)
    assert meter.usage() == 0.0


def test_pressure_is_a_fraction_and_none_where_there_is_none(tmp_path: Path) -> None:
    assert cpu_pressure(tmp_path) is None
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n")
    assert cpu_pressure(tmp_path) == pytest.approx(0.125)


def test_free_memory_is_in_bytes_and_none_where_unknown(tmp_path: Path) -> None:
    assert memory_bytes_free(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    2048 kB\n")
    assert memory_bytes_free(tmp_path) == 2048 * 1024


def test_slots_follow_the_cores() -> None:
    assert default_slots(8) == 8
    assert default_slots(8, cores_per_tool=0.5) == 16
    assert default_slots(0.5) == 1
    assert default_slots() == default_slots(usable_cores())
    with pytest.raises(ValueError, match="cores_per_tool"):
        default_slots(8, cores_per_tool=0)
