# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the control plane, in vLLM's style under ``mars:``.

Values are read from the fold at scrape time; only durations are summed as they happen.
Labels are ``model_name`` and ``engine``, and ``tenant`` for the tenants that are
configured, never a session id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mars.core import events as ev
from mars.gateway.admission import Admission
from mars.gateway.hub import Hub
from mars.gateway.load import LoadBoard
from mars.gateway.tenants import Tenants

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
MICROSECONDS = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 0.1)
_OUTCOMES = {"returned": "hit", "pressure": "evicted"}
"""Reason of ``kv_released`` -> outcome; all other reasons are ``expired``."""
LABELS = ("model_name", "engine")


class Buckets:
    """A histogram's counts."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Write the cumulative buckets into a metric family."""
        total, cumulative = 0, list[tuple[str, float]]()
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            cumulative.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        family.add_metric(labels, buckets=cumulative, sum_value=self._sum)


class GatewayMetrics(Collector):
    """Collects everything at ``/metrics`` from hub, admission and load.

    Args:
        hub: the stream.
        admission: the queue.
        board: the load, for its alarms.
        tenants: whose names are labels.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        hub: Hub,
        admission: Admission,
        board: LoadBoard,
        tenants: Tenants,
        clock: Callable[[], float],
    ) -> None:
        self.model_name = "unknown"
        self._hub, self._admission, self._board, self._clock = hub, admission, board, clock
        self._tenants = tenants
        self._by_tenant: Counter[tuple[str, str]] = Counter()
        self._admission_wait = Buckets(SECONDS)
        self._tool_queue = Buckets(SECONDS)
        self._tool_run = Buckets(SECONDS)
        self._policy: dict[str, Buckets] = {}
        self._requests: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def apply(self, event: ev.Event, source: str) -> None:
        """Take in one event; durations only."""
        if isinstance(event, ev.SessionAdmitted):
            self._admission_wait.observe(event.held_s)
        elif isinstance(event, ev.ToolStarted):
            self._tool_queue.observe(event.queued_s)
        elif isinstance(event, ev.ToolFinished):
            self._tool_run.observe(event.duration_s)

    def policy_took(self, question: str, seconds: float) -> None:
        """An admission policy answered ``question`` within ``seconds``."""
        self._policy.setdefault(question, Buckets(MICROSECONDS)).observe(seconds)

    def answered(self, status: int, tenant: str | None = None) -> None:
        """A request was answered with this status; the tenant is None where nobody knows."""
        self._requests[str(status)] += 1
        if tenant is not None:
            self._by_tenant[tenant, str(status)] += 1

    def render(self) -> bytes:
        """The page in Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing to check at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, at scrape time."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._of_tenants()

    def _gauges(self) -> Iterator[Metric]:
        fold, now = self._hub.fold, self._clock()
        host = fold.host
        gauges: list[tuple[str, str, float | None]] = [
            ("sessions_active", "Sessions admitted and not ended.", len(self._admission.active)),
            ("sessions_held", "Sessions held outside the engine.", self._admission.num_held),
            ("sessions_paused", "Held between two turns.", len(self._admission.held.paused)),
            ("admission_window", "Sessions that may be active.", self._admission.window()),
            ("kv_blocks_retained", "KV blocks of tool-blocked sessions.", fold.kv_blocks_retained),
            ("cpu_pressure", "PSI some avg10, 0..1.", host.cpu_pressure if host else None),
            ("tools_running", "Tool calls that run.", host.tools_running if host else None),
            ("tools_queued", "Tool calls that wait.", host.tools_queued if host else None),
            ("telemetry_stale", "1 while load is not known.", float(self._board.is_stale(now))),
            ("telemetry_alarms", "Alarms about telemetry.", len(self._board.alarms(now))),
            ("hold_oldest_seconds", "Longest wait of a held session.", self._oldest_s(now)),
            ("draining", "1 while no new sessions are taken.", self._admission.is_draining),
        ]
        for name, text, value in gauges:
            if value is None:
                continue  # not known is absent, never zero
            family = GaugeMetricFamily(f"mars:{name}", text, labels=LABELS)
            family.add_metric(self._labels(), value)
            yield family
        levels = Counter(s.level for s in fold.sessions.values() if s.level is not None)
        family = GaugeMetricFamily(
            "mars:turn_level", "Sessions by level.", labels=(*LABELS, "level")
        )
        for level, count in sorted(levels.items()):
            family.add_metric([*self._labels(), str(level)], count)
        yield family

    def _counters(self) -> Iterator[Metric]:
        sums = self._hub.fold.counters
        plain: list[tuple[str, str, float]] = [
            ("tool_cpu_seconds", "CPU seconds of finished tools.", sums.tool_cpu_seconds),
            ("events_dropped", "Events lost to slow readers or gaps.", sums.events_dropped),
            ("events", "Events in the stream.", sums.num_events),
            ("preemptions", "Turns that lost their KV.", sums.preemptions),
            ("recomputed_tokens", "Prefill of tokens computed before.", sums.recomputed_tokens),
        ]
        for name, text, value in plain:
            family = CounterMetricFamily(f"mars:{name}", text, labels=LABELS)
            family.add_metric(self._labels(), value)
            yield family
        outcomes = Counter({"hit": 0, "expired": 0, "evicted": 0})
        for reason, count in sums.kv_released.items():
            outcomes[_OUTCOMES.get(reason, "expired")] += count
        yield self._by("kv_retention_outcomes", "Ends of retention.", "outcome", outcomes)
        ended = Counter(sums.sessions_ended)
        yield self._by("sessions_ended", "Ended sessions.", "reason", ended)
        yield self._by("requests", "Answered requests.", "status", self._requests)

    def _of_tenants(self) -> Iterator[Metric]:
        active = Counter(s.tenant for s in self._admission.active.sessions.values())
        held = Counter(p.held.session.tenant for p in self._admission.places())
        names = self._tenants.names()
        for name, text, counts in (
            ("tenant_sessions_active", "Active sessions of a tenant.", active),
            ("tenant_sessions_held", "Held sessions of a tenant.", held),
        ):
            family = GaugeMetricFamily(f"mars:{name}", text, labels=(*LABELS, "tenant"))
            for tenant in names:
                family.add_metric([*self._labels(), tenant], counts[tenant])
            yield family
        for name, text, label, counts in (
            ("tenant_requests", "Answered requests of a tenant.", "status", self._by_tenant),
            ("tenant_refusals", "Requests above a limit.", "limit", self._tenants.refused),
        ):
            family = CounterMetricFamily(f"mars:{name}", text, labels=(*LABELS, "tenant", label))
            for (tenant, value), count in sorted(counts.items()):
                family.add_metric([*self._labels(), tenant, value], count)
            yield family

    def _oldest_s(self, now: float) -> float:
        waited_on = (p.held.held_since for p in self._admission.places() if p.waiters)
        return max((now - since for since in waited_on), default=0.0)

    def _by(self, name: str, text: str, label: str, counts: Counter[str]) -> CounterMetricFamily:
        family = CounterMetricFamily(f"mars:{name}", text, labels=(*LABELS, label))
        for value, count in sorted(counts.items()):
            family.add_metric([*self._labels(), value], count)
        return family

    def _histograms(self) -> Iterator[Metric]:
        plain = [
            ("admission_wait_seconds", "From arrival to admission.", self._admission_wait),
            ("tool_queue_seconds", "From asked for to started.", self._tool_queue),
            ("tool_run_seconds", "Run time of tool calls.", self._tool_run),
        ]
        for name, text, buckets in plain:
            family = HistogramMetricFamily(f"mars:{name}", text, labels=LABELS)
            buckets.add_to(family, self._labels())
            yield family
        family = HistogramMetricFamily(
            "mars:policy_duration_seconds",
            "Time of a policy's answer.",
            labels=(*LABELS, "question"),
        )
        for question, buckets in sorted(self._policy.items()):
            buckets.add_to(family, [*self._labels(), question])
        yield family

    def _labels(self) -> list[str]:
        return [self.model_name, "0"]
