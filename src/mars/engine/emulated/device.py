# SPDX-License-Identifier: Apache-2.0
"""The emulated accelerator: one queue of steps in modelled time, and how late reality is.

A step starts when the step before it is done, or when it is submitted if the device is
idle: ``free_at = max(now, free_at) + step_s * time_scale``. So a scheduler that submits the
next step while one runs is paid for it, as on a GPU, and one that does not, is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TypeVar

from mars.core.cost import CostModel

_T = TypeVar("_T")


class Device:
    """Modelled time of one accelerator; all counters are cumulative, in real seconds.

    ``busy_s`` is the time it computed, ``late_s`` the sum over steps of how long after its
    end each was collected, ``max_late_s`` the worst of them, ``stalled_s`` how long it stood
    idle between two steps of the same requests because the next came too late. ``free_at``
    is when the last step submitted will be done.
    """

    __slots__ = (
        "_cost",
        "_time_scale",
        "busy_s",
        "free_at",
        "late_s",
        "max_late_s",
        "num_steps",
        "stalled_s",
    )

    def __init__(self) -> None:
        self.reset(CostModel(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))

    def reset(self, cost: CostModel, time_scale: float = 1.0) -> None:
        """Start anew with this step cost; ``time_scale`` > 1 runs slower than the model."""
        self._cost = cost
        self._time_scale = time_scale
        self.free_at = 0.0
        self.busy_s = 0.0
        self.late_s = 0.0
        self.max_late_s = 0.0
        self.stalled_s = 0.0
        self.num_steps = 0

    def submit(
        self, work: Iterable[tuple[int, int]], now: float, *, is_continuation: bool = False
    ) -> float:
        """Queue one step.

        Args:
            work: (tokens computed before, tokens computed now) of each sequence.
            now: monotonic seconds.
            is_continuation: a request of an earlier step goes on in this one.

        Returns:
            When the step will be done (monotonic seconds).
        """
        step_s = self._cost.step_s(work) * self._time_scale
        idle_s = now - self.free_at
        if idle_s > 0:
            self.free_at = now
            if is_continuation:
                self.stalled_s += idle_s
        self.free_at += step_s
        self.busy_s += step_s
        self.num_steps += 1
        return self.free_at

    def collected(self, deadline: float, now: float) -> None:
        """Account for a step that ended at ``deadline`` and was collected at ``now``."""
        late_s = now - deadline
        if late_s > 0:
            self.late_s += late_s
            self.max_late_s = max(self.max_late_s, late_s)

    def counters(self) -> dict[str, float]:
        """All counters by name."""
        names = ("num_steps", "busy_s", "late_s", "max_late_s", "stalled_s")
        return {name: getattr(self, name) for name in names}


DEVICE = Device()
"""The accelerator of this engine-core process; the scheduler plug-in reports its counters."""


class StepFuture(Future[_T]):
    """The result of a step: known at once, given out when the step is done."""

    def __init__(self, device: Device, deadline: float, output: _T) -> None:
        super().__init__()
        self._device = device
        self._deadline = deadline
        self._output = output

    def done(self) -> bool:
        """Whether the step is over in modelled time."""
        return super().done() or time.monotonic() >= self._deadline

    def result(self, timeout: float | None = None) -> _T:
        """Sleep until the step is over.

        Raises:
            TimeoutError: it is not over after ``timeout`` seconds.
        """
        if not super().done():
            wait_s = self._deadline - time.monotonic()
            if timeout is not None and wait_s > timeout:
                time.sleep(timeout)
                raise TimeoutError
            if wait_s > 0:
                time.sleep(wait_s)
            self._device.collected(self._deadline, time.monotonic())
            self.set_result(self._output)
        return super().result()
