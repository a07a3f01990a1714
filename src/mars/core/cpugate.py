# SPDX-License-Identifier: Apache-2.0
"""How many sessions the CPUs let in: by the tools that run or wait, per slot."""

from __future__ import annotations

import math

from mars.core.model import Load
from mars.core.window import Smoothed

CPU_BUSY, CPU_SWAMPED = 2.0, 3.0
"""Tools running or queued per slot, from which one session at a time, and none, is let in.
Chosen by simulation (docs/policy.md): with the tool queue in good order, a short one costs
less than cores that run dry."""


class CpuGate:
    """Nobody while the cores are swamped, one session every ``pace_s`` while they are busy.

    The pace is for the delay of the signal: a session's tools come after its first turns.
    The backlog is averaged over 20 s; a tool pool that fell silent counts as swamped, and
    where there never was one, nobody is kept out.
    """

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s
        self.backlog = Smoothed(tau_s=20.0)
        self._has_pool = self._is_silent = False
        self._admitted_at = -math.inf

    def update(self, load: Load, now: float) -> None:
        """One control interval passed."""
        backlog = None
        if load.tool_slots and load.tools_running is not None and load.tools_queued is not None:
            backlog = (load.tools_running + load.tools_queued) / load.tool_slots
            self._has_pool = True
        self._is_silent = self._has_pool and backlog is None
        self.backlog.update(backlog, now)

    def admitted(self, now: float) -> None:
        """A session was let in."""
        self._admitted_at = now

    @property
    def is_closed(self) -> bool:
        """Whether the cores are swamped, or nobody knows."""
        return self._is_silent or (self.backlog.value or 0.0) > CPU_SWAMPED

    def room(self, now: float) -> float:
        """How many sessions may be let in now."""
        if self.is_closed:
            return 0
        if (self.backlog.value or 0.0) > CPU_BUSY:
            return 1 if now - self._admitted_at > self.pace_s else 0
        return math.inf
