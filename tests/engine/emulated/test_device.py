# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from mars.core.cost import CostModel
from mars.engine.emulated import register_platform
from mars.engine.emulated.device import Device, StepFuture

ONE_SECOND = CostModel(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NO_TIME = CostModel(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
WORK = [(100, 1)]


def make_device(cost: CostModel = ONE_SECOND, time_scale: float = 1.0) -> Device:
    device = Device()
    device.reset(cost, time_scale)
    return device


def test_step_submitted_while_one_runs_starts_when_that_is_done() -> None:
    device = make_device()
    assert device.submit(WORK, 10.0) == 11.0
    assert device.submit(WORK, 10.2, is_continuation=True) == 12.0
    assert device.submit(WORK, 15.0) == 16.0
    assert (device.busy_s, device.stalled_s, device.num_steps) == (3.0, 0.0, 3)


def test_idle_time_between_steps_of_the_same_requests_counts_as_stalled() -> None:
    device = make_device()
    device.submit(WORK, 10.0)
    assert device.submit(WORK, 11.5, is_continuation=True) == 12.5
    assert device.stalled_s == 0.5


def test_time_scale_stretches_steps() -> None:
    device = make_device(time_scale=2.5)
    assert device.submit(WORK, 0.0) == 2.5
    assert device.busy_s == 2.5


def test_late_collection_is_summed_and_the_worst_kept() -> None:
    device = make_device()
    for deadline, now in ((1.0, 1.25), (2.0, 1.5), (3.0, 3.5)):
        device.collected(deadline, now)
    assert device.counters() == {
        "num_steps": 0,
        "busy_s": 0.0,
        "late_s": 0.75,
        "max_late_s": 0.5,
        "stalled_s": 0.0,
    }


def test_result_is_given_when_the_step_is_over_and_accounted_once() -> None:
    device = make_device(NO_TIME)
    deadline = time.monotonic() + 0.05
    future = StepFuture(device, deadline, "output")
    assert not future.done()
    assert future.result() == "output"
    assert time.monotonic() >= deadline
    late_s = device.late_s
    assert future.done()
    assert future.result() == "output"
    assert device.late_s == late_s > 0


def test_result_respects_its_timeout() -> None:
    device = make_device(NO_TIME)
    future = StepFuture(device, time.monotonic() + 60.0, "output")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert device.late_s == 0.0


def test_platform_is_offered_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARS_EMULATE", raising=False)
    assert register_platform() is None
    monkeypatch.setenv("MARS_EMULATE", "1")
    path = register_platform()
    assert path == "mars.engine.emulated.platform.EmulatedPlatform"
