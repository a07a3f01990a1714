# SPDX-License-Identifier: Apache-2.0
"""Virtual time: order of events, and an engine that runs between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from mars.core.model import Load
from mars.sim.loop import Driver, EventLoop, StuckError


class Clockwork:
    """An engine whose turns take one step of a fixed time each, in order."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.step_s = step_s
        self.waiting: deque[str] = deque()
        self.planned: deque[str] = deque()
        self.plans: list[tuple[float, str]] = []
        self.is_open = True

    @property
    def has_requests(self) -> bool:
        return bool(self.waiting or self.planned)

    def submit(
        self,
        request_id: str,
        session_id: str,
        prompt: Sequence[tuple[str, int, int]],
        reply: tuple[str, int, int],
        now: float,
    ) -> None:
        self.waiting.append(request_id)

    def plan(self, now: float) -> float | None:
        if not self.waiting or not self.is_open:
            return None
        self.planned.append(self.waiting.popleft())
        self.plans.append((now, self.planned[-1]))
        return self.step_s

    def complete(self, now: float) -> list[str]:
        return [self.planned.popleft()]

    def leap(self, now: float, end: float, until: float) -> tuple[float, float]:
        return now, end

    def control(self, message: dict[str, Any]) -> None: ...

    def num_computed_tokens(self, session_id: str) -> int:
        return 0

    def load(self, now: float) -> Load:
        return Load(sampled_at=now)


def run(arrivals: dict[str, float], depth: int) -> tuple[Clockwork, dict[str, float], Driver]:
    events, engine, ends = EventLoop(), Clockwork(), dict[str, float]()

    def submit(name: str) -> None:
        engine.submit(name, name, [], ("", 0, 0), events.now)

    for name, time in arrivals.items():
        events.at(time, submit, name)
    driver = Driver(events, engine, lambda ids: ends.update(dict.fromkeys(ids, events.now)), depth)
    driver.run()
    return engine, ends, driver


def test_events_go_by_time_then_priority_then_order_of_making() -> None:
    events, seen = EventLoop(), list[str]()
    events.at(2.0, seen.append, "later")
    events.at(1.0, seen.append, "second", priority=1)
    events.at(1.0, seen.append, "first")
    events.at(1.0, lambda: events.at(1.0, seen.append, "made by it"))
    events.run_due(1.5)
    assert seen == ["first", "made by it", "second"]
    assert events.next_time == 2.0


def test_an_event_happens_at_its_own_time_while_a_step_runs() -> None:
    events, engine, seen = EventLoop(), Clockwork(step_s=10.0), list[float]()
    events.at(0.0, lambda: engine.submit("a", "a", [], ("", 0, 0), 0.0))
    events.at(3.0, lambda: events.at(events.now + 4.0, lambda: seen.append(events.now)))
    Driver(events, engine, lambda ids: seen.append(events.now)).run()
    assert seen == [7.0, 10.0]


def test_one_step_at_a_time_or_the_next_planned_ahead() -> None:
    arrivals = {"a": 0.0, "b": 0.0, "c": 0.5}
    one, ends, driver = run(arrivals, depth=1)
    assert one.plans == [(0.0, "a"), (1.0, "b"), (2.0, "c")]
    two, ends_ahead, _ = run(arrivals, depth=2)
    assert two.plans == [(0.0, "a"), (0.0, "b"), (1.0, "c")]
    assert ends == ends_ahead == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert driver.busy_s == 3.0


def test_an_idle_engine_waits_for_the_next_event() -> None:
    _, ends, driver = run({"a": 0.0, "b": 100.0}, depth=2)
    assert ends == {"a": 1.0, "b": 101.0}
    assert driver.busy_s == 2.0


def test_an_engine_that_serves_nobody_is_told_so() -> None:
    events, engine = EventLoop(), Clockwork()
    engine.is_open = False
    events.at(0.0, lambda: engine.submit("a", "a", [], ("", 0, 0), 0.0))
    with pytest.raises(StuckError, match="turns wait"):
        Driver(events, engine, lambda ids: None).run()


def test_a_gate_that_opens_later_is_found_open() -> None:
    events, engine, ends = EventLoop(), Clockwork(), list[float]()
    engine.is_open = False
    events.at(0.0, lambda: engine.submit("a", "a", [], ("", 0, 0), 0.0))
    events.at(50.0, lambda: setattr(engine, "is_open", True))
    Driver(events, engine, lambda ids: ends.append(events.now)).run()
    assert ends == [51.0]
