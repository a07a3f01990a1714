# SPDX-License-Identifier: Apache-2.0
"""The load of both resources as the control plane sees it: sampled, with a sliding window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

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
        engine = self._last
        if engine is None or now - engine.sampled_at >= SAMPLE_S or self._is_idle(engine):
            engine = self._last = self._sample(now)
        first, host, usage = self._samples[0], self.host, self._usage
        return Load(
            sampled_at=engine.sampled_at,
            kv_blocks_total=engine.kv_blocks_total,
            kv_blocks_free=engine.kv_blocks_free,
            kv_blocks_retained=engine.kv_blocks_retained,
            block_size=engine.block_size,
            host_blocks_total=engine.host_blocks_total,
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_held=self._num_held(),
            preemptions=(engine.preemptions or 0) - (first.preemptions or 0),
            computed_tokens=(engine.computed_tokens or 0) - (first.computed_tokens or 0),
            recomputed_tokens=(engine.recomputed_tokens or 0) - (first.recomputed_tokens or 0),
            cpu_cores=host.num_cores if host else None,
            cpu_usage=usage.value if usage else None,
            cpu_pressure=host.totals.pressure if host else None,
            tool_slots=host.num_slots if host else None,
            tools_running=host.num_running if host else None,
            tools_queued=host.num_queued if host else None,
            tool_queue_delay_s=host.totals.queue_delay_s if host else None,
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
        if self._usage is not None:
            self._usage.sample(now)
        return newest
