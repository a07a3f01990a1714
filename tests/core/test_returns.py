# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mars.core.returns import ReturnForecast


def test_a_class_is_expected_back_when_its_calls_came_back() -> None:
    forecast = ReturnForecast()
    for _ in range(50):
        forecast.started("bash:pytest", 0.0, 0.0)
        forecast.finished("bash:pytest", 30.0)
        forecast.finished("read", 0.1)
    assert 25.0 < forecast.started("bash:pytest", 0.0, 100.0) - 100.0 < 40.0
    assert forecast.started("read", 0.0, 100.0) - 100.0 < 2.0


def test_a_queued_call_is_expected_a_queue_wait_later_than_a_started_one() -> None:
    forecast = ReturnForecast()
    for _ in range(50):
        forecast.started("bash", 8.0, 0.0)
    assert forecast.queued("bash", 0.0) - forecast.started("bash", 8.0, 0.0) > 7.5
