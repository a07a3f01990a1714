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
PRIOR_DEMAND = 0.5
"""Tools running or queued per active session before any was seen: half of them act."""


class CpuGate:
    """As many sessions as keep ``CPU_BUSY`` tools per slot; beyond that one every ``pace_s``.

    The backlog alone comes too late: a session's tools follow its first turns, and whoever
    is let in until then comes on top. So the bound is in sessions, by the tools that one of
    them has running or queued on the average of the last minute. The backlog is averaged
    over 20 s; nobody comes in while it says that the cores are swamped, or while a tool
    pool is silent, and where there never was a pool nobody is kept out.
    """

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s
        self.backlog = Smoothed(tau_s=20.0)
        self.demand = Smoothed(tau_s=60.0, value=PRIOR_DEMAND)
        self._num_slots = 0
        self._has_pool = self._is_silent = False
        self._admitted_at = -math.inf

    def update(self, load: Load, num_active: int, now: float) -> None:
        """One control interval passed with so many active sessions."""
        backlog = None
        if load.tool_slots and load.tools_running is not None and load.tools_queued is not None:
            backlog = (load.tools_running + load.tools_queued) / load.tool_slots
            self._has_pool = True
            self._num_slots = load.tool_slots
            if num_active:
                self.demand.update(backlog * load.tool_slots / num_active, now)
        self._is_silent = self._has_pool and backlog is None
        self.backlog.update(backlog, now)

    def admitted(self, now: float) -> None:
        """A session was let in."""
        self._admitted_at = now

    @property
    def is_closed(self) -> bool:
        """Whether the cores are swamped, or nobody knows."""
        return self._is_silent or (self.backlog.value or 0.0) > CPU_SWAMPED

    def room(self, num_active: int, now: float) -> float:
        """How many sessions may join the active ones now."""
        if self.is_closed:
            return 0
        if not self._has_pool:
            return math.inf
        demand = max(self.demand.value or 0.0, 1e-3)
        room = math.floor(CPU_BUSY * self._num_slots / demand) - num_active
        if room >= 1 and (self.backlog.value or 0.0) <= CPU_BUSY:
            return room
        return 1 if now - self._admitted_at > self.pace_s else 0
