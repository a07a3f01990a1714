# SPDX-License-Identifier: Apache-2.0
"""How many tools the cores can feed, learned from the CPU that tools really use."""

from __future__ import annotations

from mars.core.model import Load, ToolCall

_MEMORY = 0.98
"""Share of the past that is kept with each call: about the last 50 count."""
_MIN_SECONDS = 5.0
"""Tool seconds seen before the measured demand is believed."""
_DEFAULT_PEAK_BYTES = 64 * 2**20


class CoreDemand:
    """Mean cores and memory of a running tool, and the slots that follow from it.

    ``slots = cores / mean cores per running tool``, between the cores and ``overcommit``
    times the cores. Most tools of coding agents wait more than they compute, so a slot per
    core leaves the cores idle while tools queue. On full cores the measured demand per tool
    falls as their number grows; the bound, not the measurement, ends that, and the free
    memory: no more tools start than fit into it.

    Args:
        overcommit: Most slots per core; 1: always as many slots as configured.
    """

    def __init__(self, overcommit: float) -> None:
        if overcommit < 1.0:
            raise ValueError(f"overcommit must be at least 1, not {overcommit}")
        self.overcommit = overcommit
        self._cpu_s = 0.0
        self._wall_s = 0.0
        self._peak_bytes = float(_DEFAULT_PEAK_BYTES)

    def observe(self, call: ToolCall) -> None:
        """A call ended (``started_at`` and ``finished_at`` set)."""
        if call.started_at is None or call.finished_at is None:
            return
        self._cpu_s = _MEMORY * self._cpu_s + call.cpu_seconds
        self._wall_s = _MEMORY * self._wall_s + call.finished_at - call.started_at
        self._peak_bytes = max(float(call.peak_bytes), _MEMORY * self._peak_bytes)

    def slots(self, load: Load) -> int | None:
        """Tools that may run at once, or None for the configured number.

        Fewer slots than cores are somebody's wish, and stay.
        """
        if load.tool_slots and load.cpu_cores and load.tool_slots < load.cpu_cores:
            return None
        if self.overcommit <= 1.0 or not load.cpu_cores or self._wall_s < _MIN_SECONDS:
            return None
        most = self.overcommit * load.cpu_cores
        mean_cores = max(self._cpu_s / self._wall_s, 1.0 / self.overcommit)
        wanted = max(load.cpu_cores, int(min(most, load.cpu_cores / mean_cores)))
        if load.memory_bytes_free is not None and load.tools_running is not None:
            num_more = int(load.memory_bytes_free / max(self._peak_bytes, 1.0))
            wanted = min(wanted, max(load.cpu_cores, load.tools_running + num_more))
        return wanted
