# SPDX-License-Identifier: Apache-2.0
"""The load of both resources as the admission policy sees it, and how old it is.

Engine samples come from the plug-in's events, or from ``/metrics`` of a stock vLLM.
What is stale or missing is ``None`` and raises an alarm; it is never zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from mars.core.events import (
    EngineJoined,
    EngineSampled,
    Event,
    EventsDropped,
    HostKvSampled,
    HostSampled,
)
from mars.core.model import Load

WINDOW_S = 10.0
"""Sliding window of the recompute ratio and of preemptions (chosen: long against the
control interval of 0.2 s, short against a session)."""


class Freshness(StrEnum):
    """What is known of one resource's load."""

    MISSING = "missing"
    """No sample yet. An alarm once turns run; nothing is assumed of the load."""
    FRESH = "fresh"
    STALE = "stale"
    """The samples stopped: values are unknown, nobody new is let in, and there is an alarm."""


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
        num_ranks: data-parallel ranks that must report; their loads are added up.
    """

    def __init__(
        self,
        stale_s: float,
        num_held: Callable[[], int],
        tool_slots: int | None = None,
        num_ranks: int = 1,
    ) -> None:
        self.stale_s = stale_s
        self._num_ranks = num_ranks
        self._num_held = num_held
        self._tool_slots = tool_slots
        self._engines: dict[int, deque[EngineLoad]] = {}
        self._host_blocks: dict[int, int] = {}
        self._host: HostSampled | None = None
        self._pool: HostSampled | None = None
        self._waiting_since: float | None = None
        self._seen: tuple[float, Load] | None = None
        self._lost: deque[tuple[float, int]] = deque()
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
                ),
                event.engine_rank,
            )
        elif isinstance(event, HostKvSampled):
            self._host_blocks[event.engine_rank] = event.num_blocks
        elif isinstance(event, EngineJoined):
            if event.is_restart:
                self._engines.pop(event.engine_rank, None)
                self._host_blocks.pop(event.engine_rank, None)
                self._seen = None
        elif isinstance(event, EventsDropped):
            if event.source.startswith("engine"):
                self._lost.append((event.time, event.count))
        elif isinstance(event, HostSampled):
            self._seen = None
            if source == "gateway":
                self._host = event
            else:
                self._pool = event

    def engine_sampled(self, sample: EngineLoad, rank: int = 0) -> None:
        """Take in one engine sample; counters that fall mean that the engine restarted."""
        samples = self._engines.setdefault(rank, deque())
        if samples and _has_fallen(samples[-1], sample):
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
        return self._pool is not None and now - self._pool.time <= self.stale_s

    def engine_state(self, now: float) -> Freshness:
        """Of all ranks together: that of the worst."""
        if any(now - samples[-1].time > self.stale_s for samples in self._engines.values()):
            return Freshness.STALE
        is_whole = len(self._engines) >= self._num_ranks
        return Freshness.FRESH if is_whole else Freshness.MISSING

    def host_state(self, now: float) -> Freshness:
        """Of the newest sample, the gateway's own or a tool pool's."""
        times = [sample.time for sample in (self._host, self._pool) if sample is not None]
        if not times:
            return Freshness.MISSING
        return Freshness.FRESH if now - max(times) <= self.stale_s else Freshness.STALE

    def num_lost(self, now: float) -> int:
        """Engine events lost for good within the sliding window."""
        while self._lost and self._lost[0][0] < now - WINDOW_S:
            self._lost.popleft()
        return sum(count for _, count in self._lost)

    def is_stale(self, now: float) -> bool:
        """Whether engine samples stopped, or are due and never came."""
        state = self.engine_state(now)
        if state is not Freshness.MISSING:
            return state is Freshness.STALE
        return self._waiting_since is not None and now - self._waiting_since > self.stale_s

    def alarms(self, now: float) -> list[str]:
        """What is wrong with the telemetry, in words; empty when all is well."""
        found = self._engine_alarms(now)
        if lost := self.num_lost(now):
            found.append(f"{lost} engine events were lost in the last {WINDOW_S:g} s")
        if self.host_state(now) is Freshness.STALE:
            found.append("host telemetry is stale: neither gateway nor tool pool samples the CPUs")
        elif self._pool is not None and not self.has_pool(now):
            age_s = now - self._pool.time
            found.append(f"the tool pool fell silent: its last sample is {age_s:.1f} s old")
        return found

    def _engine_alarms(self, now: float) -> list[str]:
        if not self.is_stale(now):
            return [self.fault] if self.fault else []
        if self.fault:
            return [f"engine telemetry is stale: {self.fault}"]
        ages = {rank: now - samples[-1].time for rank, samples in self._engines.items()}
        silent = {rank: age_s for rank, age_s in ages.items() if age_s > self.stale_s}
        if not silent and not self._engines:
            return ["no engine telemetry yet although turns are running"]
        if not silent:
            ranks = sorted(set(range(self._num_ranks)) - set(self._engines))
            return [f"no engine telemetry yet of rank {', '.join(map(str, ranks))}"]
        which = f" (rank {', '.join(map(str, sorted(silent)))})" if self._num_ranks > 1 else ""
        oldest_s = max(silent.values())
        return [f"engine telemetry is stale{which}: last sample {oldest_s:.1f} s ago"]

    def load(self, now: float) -> Load:
        """The present load; None where not known."""
        if self._seen is not None and 0 <= now - self._seen[0] < 0.01:
            return self._seen[1]._replace(num_held=self._num_held())
        load = self._host_part(now)
        if self.engine_state(now) is Freshness.FRESH:
            load = self._with_engine(load)
        self._seen = (now, load)
        return load

    def _host_part(self, now: float) -> Load:
        host, pool = self._host, self._pool
        is_fresh = host is not None and now - host.time <= self.stale_s
        newest = pool if pool is not None and self.has_pool(now) else host if is_fresh else None
        load = Load(
            sampled_at=now,
            num_held=self._num_held(),
            tool_slots=self._tool_slots if pool is None else pool.tool_slots,
        )
        if newest is None:
            return load
        load = load._replace(
            cpu_cores=newest.cpu_cores,
            cpu_usage=newest.cpu_usage,
            cpu_pressure=newest.cpu_pressure,
            memory_bytes_free=newest.memory_bytes_free,
        )
        if pool is not None and newest is not pool:
            return load  # a pool that fell silent leaves its numbers unknown
        return load._replace(
            tools_running=newest.tools_running,
            tools_queued=newest.tools_queued,
            tool_queue_delay_s=newest.tool_queue_delay_s,
        )

    def _with_engine(self, load: Load) -> Load:
        ranks = self._engines.values()
        last = [samples[-1] for samples in ranks]
        return load._replace(
            sampled_at=min(sample.time for sample in last),
            kv_blocks_total=sum(sample.kv_blocks_total for sample in last),
            kv_blocks_free=sum(sample.kv_blocks_free for sample in last),
            kv_blocks_retained=_sum(sample.kv_blocks_retained for sample in last),
            block_size=last[0].block_size,
            host_blocks_total=sum(self._host_blocks.values()) or None,
            num_running=sum(sample.num_running for sample in last),
            num_waiting=sum(sample.num_waiting for sample in last),
            preemptions=sum(s[-1].preemptions - s[0].preemptions for s in ranks),
            computed_tokens=_sum(
                _growth(s[0].computed_tokens, s[-1].computed_tokens) for s in ranks
            ),
            recomputed_tokens=_sum(
                _growth(s[0].recomputed_tokens, s[-1].recomputed_tokens) for s in ranks
            ),
        )


def _growth(first: int | None, last: int | None) -> int | None:
    return None if first is None or last is None else last - first


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; None as soon as one is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _has_fallen(before: EngineLoad, after: EngineLoad) -> bool:
    """Whether a counter fell, which only a restart does."""
    pairs = (
        (before.preemptions, after.preemptions),
        (before.computed_tokens, after.computed_tokens),
        (before.recomputed_tokens, after.recomputed_tokens),
    )
    return any(old is not None and new is not None and new < old for old, new in pairs)
