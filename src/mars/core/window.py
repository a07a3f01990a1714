# SPDX-License-Identifier: Apache-2.0
"""The admission window: additive increase, multiplicative decrease, under two pressures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mars.core.model import Load


@dataclass(slots=True)
class Pressure:
    """One signal with hysteresis: pressed at ``high``, relieved at ``low``.

    ``is_pressed`` keeps its state in between. An unknown value (None) or not a number is
    pressed until a known value says otherwise: growth on guesswork is what must not happen.
    """

    high: float
    low: float
    is_pressed: bool = False
    value: float | None = None

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"pressure: low ({self.low}) must not exceed high ({self.high})")

    def update(self, value: float | None) -> bool:
        """Take one sample; returns ``is_pressed``."""
        self.value = value
        if value is None or math.isnan(value) or value >= self.high:
            self.is_pressed = True
        elif value <= self.low:
            self.is_pressed = False
        return self.is_pressed


@dataclass(slots=True)
class Average:
    """Exponential moving average; unknown samples leave it alone."""

    alpha: float = 0.2
    value: float | None = None

    def update(self, value: float | None) -> float | None:
        """Take one sample; returns the average."""
        if value is not None and not math.isnan(value):
            old = value if self.value is None else self.value
            self.value = old + self.alpha * (value - old)
        return self.value


@dataclass(slots=True)
class AimdWindow:
    """``size`` moves by +1 or x0.7, at most once an interval, between ``floor`` and ``ceiling``.

    Constants: MARS preview (start and ceiling 30, floor 4, every 0.2 s).
    """

    start: float = 30.0
    floor: float = 4.0
    ceiling: float = 30.0
    increase: float = 1.0
    decrease: float = 0.7
    interval_s: float = 0.2
    size: float = field(init=False)
    reason: str = "start"
    _moved_at: float = -math.inf

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.start <= self.ceiling:
            raise ValueError("window: needs 0 < floor <= start <= ceiling")
        if not 0 < self.decrease < 1 or self.increase <= 0:
            raise ValueError("window: needs 0 < decrease < 1 and increase > 0")
        self.size = self.start

    def update(self, now: float, *, is_pressed: bool, may_grow: bool, why: str = "") -> bool:
        """Move at most one step; returns whether an interval was due."""
        if now - self._moved_at < self.interval_s:
            return False
        self._moved_at = now
        before = self.size
        if is_pressed:
            self.size = max(self.floor, float(math.floor(self.size * self.decrease)))
        elif may_grow:
            self.size = min(self.ceiling, self.size + self.increase)
        if self.size != before:
            self.reason = why or ("pressed" if is_pressed else "relieved")
        return True


@dataclass(slots=True)
class CpuPressure:
    """Whether the tools' CPUs are swamped: backlog per slot, or the wait for a slot.

    Pressed at 4 tools in flight per slot or a smoothed (0.2) queue wait of 5 s, relieved
    at 1 and 2 s (MARS preview). Where no tool pool ever reported there is nothing to
    protect and the CPU counts as healthy; one that reported and falls silent is pressed.
    """

    backlog: Pressure = field(default_factory=lambda: Pressure(high=4.0, low=1.0))
    wait: Pressure = field(default_factory=lambda: Pressure(high=5.0, low=2.0))
    average_wait: Average = field(default_factory=Average)
    num_slots: int = 0
    """Slots of the pool when last known; 0: no pool seen."""
    is_pressed: bool = False

    def update(self, load: Load) -> bool:
        """Take one sample; returns ``is_pressed``."""
        self.num_slots = load.tool_slots or self.num_slots
        if not self.num_slots:
            return False
        backlog = None
        if load.tool_slots and load.tools_running is not None and load.tools_queued is not None:
            backlog = (load.tools_running + load.tools_queued) / load.tool_slots
        wait_s = self.average_wait.update(load.tool_queue_delay_s)
        is_backed_up = self.backlog.update(backlog)
        is_slow = self.wait.update(None if load.tool_queue_delay_s is None else wait_s)
        self.is_pressed = is_backed_up or is_slow
        return self.is_pressed

    @property
    def cap(self) -> float:
        """Sessions the slots carry: ``ceil(slots x mean of the backlog bounds)``."""
        if not self.num_slots:
            return math.inf
        mean = max(0.1, (self.backlog.low + self.backlog.high) / 2.0)
        return float(math.ceil(self.num_slots * mean))


@dataclass(slots=True)
class Smoothed:
    """Exponential average over time: a sample counts by the seconds since the one before."""

    tau_s: float
    value: float | None = None
    _at: float = 0.0

    def update(self, value: float | None, now: float) -> float | None:
        """Take one sample; unknown ones leave it alone. Returns the average."""
        if value is None or math.isnan(value):
            return self.value
        if self.value is None:
            self.value = value
        else:
            weight = 1.0 - math.exp(-max(0.0, now - self._at) / self.tau_s)
            self.value += weight * (value - self.value)
        self._at = now
        return self.value
