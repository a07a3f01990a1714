# SPDX-License-Identifier: Apache-2.0
"""Samples of the engine's load for the event stream."""

from __future__ import annotations

from collections.abc import Iterator

from mars.core.coscheduler import CoScheduler
from mars.core.events import EngineSampled, Event, HostKvSampled
from mars.core.model import Load
from mars.engine.emulated.device import DEVICE


class EngineSampler:
    """Counts steps and busy time; gives a sample per interval and when the engine idles.

    The engine is busy while at least one step with tokens is in flight.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_at = 0.0
        self._in_flight = 0
        self._busy_since = 0.0
        self.busy_s = 0.0
        self.num_steps = 0

    def step_started(self, num_tokens: int, now: float) -> None:
        """A step was handed to the device."""
        if num_tokens == 0:
            return
        self.num_steps += 1
        if self._in_flight == 0:
            self._busy_since = now
        self._in_flight += 1

    def step_ended(self, num_tokens: int, now: float) -> None:
        """The device's result of a step is here."""
        if num_tokens == 0:
            return
        self._in_flight -= 1
        self.busy_s += now - self._busy_since
        self._busy_since = now

    def samples(self, co: CoScheduler, load: Load, now: float) -> Iterator[Event]:
        """The sample that is due, if one is, and that of host memory, if there is some."""
        is_idle = not load.num_running and not load.num_waiting
        if now < self._next_at and not is_idle:
            return
        self._next_at = now + self._interval_s
        if load.host_blocks_total:
            yield HostKvSampled(time=now, num_blocks=load.host_blocks_total)
        yield EngineSampled(
            time=now,
            kv_blocks_total=load.kv_blocks_total or 0,
            kv_blocks_free=load.kv_blocks_free or 0,
            kv_blocks_retained=load.kv_blocks_retained or 0,
            block_size=load.block_size,
            num_running=load.num_running or 0,
            num_waiting=load.num_waiting or 0,
            num_steps=self.num_steps,
            busy_s=self.busy_s,
            computed_tokens=co.computed_tokens,
            recomputed_tokens=co.recomputed_tokens,
            prefix_queries_tokens=co.prefix_queries_tokens,
            prefix_hits_tokens=co.prefix_hits_tokens,
            preemptions=co.preemptions,
            shrunk_chunks=co.shrunk_chunks,
            late_s=DEVICE.late_s,
        )
