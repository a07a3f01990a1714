# SPDX-License-Identifier: Apache-2.0
"""Load samples in the event stream of a run, for dashboards and reports."""

from __future__ import annotations

from collections.abc import Callable

from mars.core import events as ev
from mars.sim.engine import Engine
from mars.sim.host import Host, Usage
from mars.sim.loop import Driver, EventLoop

INTERVAL_S = 1.0
"""Between two samples of virtual time."""


class Sampler:
    """Emits a sample of engine and host every second while sessions are under way.

    Args:
        events: virtual time.
        engine: the simulated engine.
        host: the tools' host.
        driver: knows how long the engine was busy.
        emit: receives the samples.
        is_alive: whether anything is still to come.
    """

    def __init__(
        self,
        events: EventLoop,
        engine: Engine,
        host: Host,
        driver: Driver,
        emit: Callable[[ev.Event], None],
        is_alive: Callable[[], bool],
    ) -> None:
        self._events = events
        self._engine = engine
        self._host = host
        self._driver = driver
        self._emit = emit
        self._is_alive = is_alive
        self._usage = Usage(host)
        events.at(0.0, self._sample, priority=2)

    def _sample(self) -> None:
        now = self._events.now
        tier = self._engine.tier
        if tier is not None:
            self._emit(ev.HostKvSampled(time=now, num_blocks=tier.pool.num_blocks))
        self._emit(self._engine_sampled(now))
        self._emit(self._host_sampled(now))
        if self._is_alive():
            self._events.at(now + INTERVAL_S, self._sample, priority=2)

    def _engine_sampled(self, now: float) -> ev.EngineSampled:
        engine, co = self._engine, self._engine.co
        return ev.EngineSampled(
            time=now,
            kv_blocks_total=co.num_blocks,
            kv_blocks_free=engine.pool.num_free,
            kv_blocks_retained=engine.num_held_blocks,
            block_size=engine.shape.block_size,
            num_running=len(engine.running),
            num_waiting=len(engine.waiting),
            num_steps=engine.num_steps,
            busy_s=self._driver.busy_s,
            computed_tokens=co.computed_tokens,
            recomputed_tokens=co.recomputed_tokens,
            prefix_queries_tokens=co.prefix_queries_tokens,
            prefix_hits_tokens=co.prefix_hits_tokens,
            preemptions=co.preemptions,
            shrunk_chunks=co.shrunk_chunks,
        )

    def _host_sampled(self, now: float) -> ev.HostSampled:
        host = self._host
        return ev.HostSampled(
            time=now,
            cpu_cores=host.num_cores,
            cpu_usage=self._usage.sample(now),
            cpu_pressure=host.totals.pressure,
            tool_slots=host.num_slots,
            tools_running=host.num_running,
            tools_queued=host.num_queued,
            tool_queue_delay_s=host.totals.queue_delay_s,
        )
