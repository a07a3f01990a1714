# SPDX-License-Identifier: Apache-2.0
"""Moves the admission window each control interval, and tells when it moved."""

from __future__ import annotations

import math
from collections.abc import Callable

from mars.core import events as ev
from mars.core.model import ActiveSet, Load
from mars.core.policy import AdmissionPolicy


class WindowWatch:
    """The window of a policy over time.

    While engine telemetry is stale the number of active sessions is frozen: who ends may
    be followed by another, and nobody is added.

    Args:
        is_stale: whether engine telemetry is too old to let the window grow.
        emit: receives :class:`WindowChanged`.
    """

    def __init__(
        self, is_stale: Callable[[float], bool], emit: Callable[[ev.Event], object]
    ) -> None:
        self.frozen_at: int | None = None
        """Active sessions when telemetry became stale; None while it is fresh."""
        self._is_stale = is_stale
        self._emit = emit
        self._size: float | None = None

    def move(
        self, policy: AdmissionPolicy, active: ActiveSet, load: Load, num_held: int, now: float
    ) -> None:
        """One control interval passed."""
        if not self._is_stale(now):
            self.frozen_at = None
        elif self.frozen_at is None:
            self.frozen_at = len(active)
        policy.on_tick(active, load, now)
        size = policy.window(load, now)
        if size == self._size or (self._size is None and size == math.inf):
            return
        self._size = size
        state = policy.state()
        self._emit(
            ev.WindowChanged(
                time=now,
                window=size,
                num_active=len(active),
                num_held=num_held,
                is_kv_pressed=bool(state.get("is_kv_pressed", False)),
                is_cpu_pressed=bool(state.get("is_cpu_pressed", False)),
                reason="stale" if self.frozen_at is not None else str(state.get("reason", "")),
            )
        )

    def room(self, active: ActiveSet) -> int | None:
        """How many sessions may be added while frozen; None: as many as the policy says."""
        return None if self.frozen_at is None else max(0, self.frozen_at - len(active))
