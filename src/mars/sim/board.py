# SPDX-License-Identifier: Apache-2.0
"""The load of both resources as the control plane sees it: sampled, with a sliding window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from mars.core.model import Load
from mars.sim.host import Host, Usage

WINDOW_S = 10.0
"""Sliding window of the recompute ratio and of preemptions, as in the gateway."""
SAMPLE_S = 0.25
"""Between two samples of the engine, the plug-in's default."""


class LoadBoard:
    """Samples of engine and host, at most ``SAMPLE_S`` old when asked for.

    Args:
        engine: the engine's side of a sample.
        num_held: sessions held now.
    """

    def __init__(self, engine: Callable[[float], Load], num_held: Callable[[], int]) -> None:
        self.host: Host | None = None
        self._engine = engine
        self._num_held = num_held
        self._samples: deque[Load] = deque()
        self._usage: Usage | None = None
        self._last: Load | None = None

    def watch(self, host: Host) -> None:
        """From now on the host's side is filled in."""
        self.host = host
        self._usage = Usage(host)

    def load(self, now: float) -> Load:
        """The present load."""
        last = self._last
        if last is None or now - last.sampled_at >= SAMPLE_S or self._is_idle(last):
            last = self._last = self._sample(now)
        host = self.host
        if host is None:
            return replace(last, num_held=self._num_held())
        return replace(
            last,
            num_held=self._num_held(),
            tools_running=host.num_running,
            tools_queued=host.num_queued,
            tool_queue_delay_s=host.totals.queue_delay_s,
        )

    @staticmethod
    def _is_idle(load: Load) -> bool:
        return not load.num_running and not load.num_waiting

    def _sample(self, now: float) -> Load:
        newest = self._engine(now)
        samples = self._samples
        samples.append(newest)
        while samples[0].sampled_at < now - WINDOW_S:
            samples.popleft()
        first = samples[0]
        load = replace(
            newest,
            preemptions=(newest.preemptions or 0) - (first.preemptions or 0),
            computed_tokens=(newest.computed_tokens or 0) - (first.computed_tokens or 0),
            recomputed_tokens=(newest.recomputed_tokens or 0) - (first.recomputed_tokens or 0),
        )
        if self.host is None or self._usage is None:
            return load
        return replace(
            load,
            cpu_cores=self.host.num_cores,
            cpu_usage=self._usage.sample(now),
            cpu_pressure=self.host.totals.pressure,
            tool_slots=self.host.num_slots,
        )
