# SPDX-License-Identifier: Apache-2.0
"""When a session is expected back from its tool, learned from the calls that ended."""

from __future__ import annotations

from mars.core import events as ev
from mars.core.estimate import DurationEstimator
from mars.core.window import Average


class ReturnForecast:
    """Expected return times for the engine, a hint and no promise.

    ``queued: now + mean wait for a slot + mean duration of the class``; ``started: start +
    mean duration``. The mean of heavy-tailed times is later than most calls end. A policy
    that uses it must bear a wrong one: the estimate of a class seen once leans on all others.

    Args:
        estimator: learned durations; own by default.
    """

    def __init__(self, estimator: DurationEstimator | None = None) -> None:
        self._durations = estimator or DurationEstimator()
        self._wait_s = Average()

    def queued(self, tool_name: str, now: float) -> float:
        """A call is asked for; when its end is expected."""
        return now + (self._wait_s.value or 0.0) + self._durations.expected(tool_name)

    def started(self, tool_name: str, queued_s: float, now: float) -> float:
        """A call starts after so long in the queue; when its end is expected."""
        self._wait_s.update(queued_s)
        return now + self._durations.expected(tool_name)

    def finished(self, tool_name: str, duration_s: float) -> None:
        """A call ended, so long after its start."""
        self._durations.observe(tool_name, duration_s)

    def take(self, event: ev.Event) -> float | None:
        """The same from an event; None for one that says nothing of a return."""
        if isinstance(event, ev.ToolQueued):
            return self.queued(event.tool_name, event.time)
        if isinstance(event, ev.ToolStarted):
            return self.started(event.tool_name, event.queued_s, event.time)
        if isinstance(event, ev.ToolFinished):
            self.finished(event.tool_name, event.duration_s)
        return None
