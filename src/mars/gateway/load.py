# SPDX-License-Identifier: Apache-2.0
"""The load of both resources as the admission policy sees it, and how old it is.

Engine samples come from the plug-in's events, or from ``/metrics`` of a stock vLLM.
What is stale or missing is ``None`` and raises an alarm; it is never zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from mars.core.events import EngineSampled, Event, HostSampled
from mars.core.model import Load

WINDOW_S = 10.0
"""Sliding window of the recompute ratio and of preemptions (chosen: long against the
control interval of 0.2 s, short against a session)."""


@dataclass(slots=True, frozen=True)
class EngineLoad:
    """One engine sample; counters are cumulative, None where the engine does not say."""

    time: float
    kv_blocks_total: int
    kv_blocks_free: int
    kv_blocks_retained: int | None
    block_size: int
    num_running: int
    num_waiting: int
    preemptions: int
    computed_tokens: int | None
    recomputed_tokens: int | None


class LoadBoard:
    """Keeps the newest samples of engine and host and makes a :class:`Load` of them.

    Args:
        stale_s: age from which a sample counts as stale.
        num_held: how many sessions are held now.
        tool_slots: configured tool slots, where no tool pool reports its own.
    """

    def __init__(
        self, stale_s: float, num_held: Callable[[], int], tool_slots: int | None = None
    ) -> None:
        self._stale_s = stale_s
        self._num_held = num_held
        self._tool_slots = tool_slots
        self._engine: deque[EngineLoad] = deque()
        self._host: HostSampled | None = None
        self._pool: HostSampled | None = None
        self._waiting_since: float | None = None
        self._seen: tuple[float, Load] | None = None
        self.fault: str | None = None
        """Why engine telemetry cannot be read, when that is known."""

    def apply(self, event: Event, source: str) -> None:
        """Take in a load sample; other events are left alone."""
        if isinstance(event, EngineSampled):
            self.engine_sampled(
                EngineLoad(
                    time=event.time,
                    kv_blocks_total=event.kv_blocks_total,
                    kv_blocks_free=event.kv_blocks_free,
                    kv_blocks_retained=event.kv_blocks_retained,
                    block_size=event.block_size,
                    num_running=event.num_running,
                    num_waiting=event.num_waiting,
                    preemptions=event.preemptions,
                    computed_tokens=event.computed_tokens,
                    recomputed_tokens=event.recomputed_tokens,
                )
            )
        elif isinstance(event, HostSampled):
            self._seen = None
            if source == "gateway":
                self._host = event
            else:
                self._pool = event

    def engine_sampled(self, sample: EngineLoad) -> None:
        """Take in one engine sample; counters that fall mean that the engine restarted."""
        samples = self._engine
        if samples and sample.preemptions < samples[-1].preemptions:
            samples.clear()
        samples.append(sample)
        while samples[0].time < sample.time - WINDOW_S:
            samples.popleft()
        self.fault = None
        self._seen = None

    def turns_open(self, num_open: int, now: float) -> None:
        """Tell how many turns the engine has, which says whether samples are due."""
        if num_open == 0:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now

    def has_pool(self, now: float) -> bool:
        """Whether a tool pool reports the host's load itself."""
        return self._pool is not None and now - self._pool.time <= self._stale_s

    def is_stale(self, now: float) -> bool:
        """Whether engine samples stopped, or are due and never came."""
        if self._engine:
            return now - self._engine[-1].time > self._stale_s
        return self._waiting_since is not None and now - self._waiting_since > self._stale_s

    def alarms(self, now: float) -> list[str]:
        """What is wrong with the telemetry, in words; empty when all is well."""
        if not self.is_stale(now):
            return [self.fault] if self.fault else []
        if self.fault:
            return [f"engine telemetry is stale: {self.fault}"]
        if not self._engine:
            return ["no engine telemetry yet although turns are running"]
        age_s = now - self._engine[-1].time
        return [f"engine telemetry is stale: last sample {age_s:.1f} s ago"]

    def load(self, now: float) -> Load:
        """The present load; None where not known."""
        if self._seen is not None and 0 <= now - self._seen[0] < 0.01:
            return replace(self._seen[1], num_held=self._num_held())
        load = self._host_part(now)
        if self._engine and not self.is_stale(now):
            load = self._with_engine(load)
        self._seen = (now, load)
        return load

    def _host_part(self, now: float) -> Load:
        host, pool = self._host, self._pool
        is_fresh = host is not None and now - host.time <= self._stale_s
        newest = pool if pool is not None and self.has_pool(now) else host if is_fresh else None
        load = Load(
            sampled_at=now,
            num_held=self._num_held(),
            tool_slots=self._tool_slots if pool is None else pool.tool_slots,
        )
        if newest is None:
            return load
        load = replace(
            load,
            cpu_cores=newest.cpu_cores,
            cpu_usage=newest.cpu_usage,
            cpu_pressure=newest.cpu_pressure,
            memory_bytes_free=newest.memory_bytes_free,
        )
        if pool is not None and newest is not pool:
            return load  # a pool that fell silent leaves its numbers unknown
        return replace(
            load,
            tools_running=newest.tools_running,
            tools_queued=newest.tools_queued,
            tool_queue_delay_s=newest.tool_queue_delay_s,
        )

    def _with_engine(self, load: Load) -> Load:
        last, first = self._engine[-1], self._engine[0]
        computed = recomputed = None
        if last.computed_tokens is not None and first.computed_tokens is not None:
            computed = last.computed_tokens - first.computed_tokens
        if last.recomputed_tokens is not None and first.recomputed_tokens is not None:
            recomputed = last.recomputed_tokens - first.recomputed_tokens
        return replace(
            load,
            sampled_at=last.time,
            kv_blocks_total=last.kv_blocks_total,
            kv_blocks_free=last.kv_blocks_free,
            kv_blocks_retained=last.kv_blocks_retained,
            block_size=last.block_size,
            num_running=last.num_running,
            num_waiting=last.num_waiting,
            preemptions=last.preemptions - first.preemptions,
            computed_tokens=computed,
            recomputed_tokens=recomputed,
        )
