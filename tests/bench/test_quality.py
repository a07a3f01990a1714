# SPDX-License-Identifier: Apache-2.0
import asyncio
import time
from pathlib import Path

import pytest

from mars.bench.quality import HostWatch, assess, cpu_pressure
from mars.bench.result import ReplayQuality


def _assess(
    lags: list[float], late_s: float | None = 0.0, busy_s: float = 100.0, **rest: object
) -> ReplayQuality:
    return assess(
        lags, HostWatch(), time_scale=1.0, engine_late_s=late_s, engine_busy_s=busy_s, **rest
    )  # type: ignore[arg-type]


def test_a_quiet_machine_passes() -> None:
    got = _assess([0.001] * 200 + [0.3])
    assert (got.verdict, got.reasons) == ("ok", [])
    assert got.lag_max_s == 0.3


@pytest.mark.parametrize(
    ("lags", "late_s", "verdict", "reason"),
    [
        ([0.2] * 10, 0.0, "degraded", "replay lag p99 0.2s > 0.1s"),
        ([1.5] * 10, 0.0, "refused", "replay lag p99 1.5s > 1s"),
        ([0.0] * 10, 5.0, "degraded", "engine lateness share 0.05 > 0.02"),
        ([0.2] * 10, 50.0, "refused", "engine lateness share 0.5 > 0.1"),
    ],
)
def test_a_machine_that_cannot_keep_up_is_named(
    lags: list[float], late_s: float, verdict: str, reason: str
) -> None:
    got = _assess(lags, late_s)
    assert got.verdict == verdict
    assert got.reasons[0] == reason


def test_lost_events_and_complaints_degrade() -> None:
    got = _assess([], events_dropped=3, complaints=["2 tools failed"])
    assert got.verdict == "degraded"
    assert got.reasons == ["3 events lost", "2 tools failed"]


def test_a_real_engine_has_no_lateness() -> None:
    got = _assess([0.0], late_s=None)
    assert (got.engine_late_share, got.verdict) == (None, "ok")


async def test_the_watch_sees_a_blocked_event_loop() -> None:
    watch, loop = HostWatch(), asyncio.get_running_loop()
    task = asyncio.create_task(watch.run())
    loop.call_later(0.05, time.sleep, 0.2)
    loop.call_later(0.4, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert max(watch.loop_lags_s) >= 0.1


def test_pressure_is_read_as_a_fraction_or_not_known(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    file.write_text("some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00\n")
    assert cpu_pressure(file) == 0.125
    file.write_text("")
    assert cpu_pressure(file) is None
    assert cpu_pressure(tmp_path / "missing") is None
