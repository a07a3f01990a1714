# SPDX-License-Identifier: Apache-2.0
"""Whether a real-time replay can be believed: its own lag, CPU starvation, engine lateness.

A replay shares its machine with what it measures. When the machine cannot keep up, times
grow for reasons no scheduler has a part in; such a run is marked, never silently reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mars.bench.metrics import mean, percentile
from mars.bench.result import ReplayQuality

LOOP_PERIOD_S = 0.02
"""How often the event loop's own delay is measured (chosen: 1% of a step's bounds)."""
HOST_PERIOD_S = 1.0
PRESSURE_FILE = Path("/proc/pressure/cpu")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds (degraded, refused) of each measure; chosen so that a quiet machine passes.

    Lags are real seconds. The engine's share is time lost against the model over its busy
    time: DESIGN.md asks for agreement within 1% on the mean.
    """

    lag_p99_s: tuple[float, float] = (0.1, 1.0)
    loop_lag_p99_s: tuple[float, float] = (0.05, 0.5)
    engine_late_share: tuple[float, float] = (0.02, 0.10)


@dataclass(slots=True)
class HostWatch:
    """Samples the replay's event loop and the machine while a replay runs."""

    loop_lags_s: list[float] = field(default_factory=list[float])
    cpu_usages: list[float] = field(default_factory=list[float])
    pressures: list[float] = field(default_factory=list[float])

    async def run(self) -> None:
        """Sample until cancelled."""
        psutil.cpu_percent()  # the first call only sets the mark
        host_due = time.monotonic() + HOST_PERIOD_S
        while True:
            due = time.monotonic() + LOOP_PERIOD_S
            await asyncio.sleep(LOOP_PERIOD_S)
            now = time.monotonic()
            self.loop_lags_s.append(now - due)
            if now >= host_due:
                host_due = now + HOST_PERIOD_S
                self._sample_host()

    def _sample_host(self) -> None:
        self.cpu_usages.append(psutil.cpu_percent() / 100.0)
        pressure = cpu_pressure()
        if pressure is not None:
            self.pressures.append(pressure)


def cpu_pressure(path: Path = PRESSURE_FILE) -> float | None:
    """PSI ``some avg10`` as a fraction, or None where the kernel does not tell."""
    try:
        line = path.read_text().splitlines()[0]
        fields = dict(part.split("=", 1) for part in line.split()[1:])
        return float(fields["avg10"]) / 100.0
    except (OSError, IndexError, KeyError, ValueError):
        return None


def assess(
    lags_s: Sequence[float],
    watch: HostWatch,
    *,
    time_scale: float,
    engine_late_s: float | None,
    engine_busy_s: float | None,
    events_dropped: int = 0,
    tool_stretch: float | None = None,
    complaints: Iterable[str] = (),
    limits: Limits | None = None,
) -> ReplayQuality:
    """Judge one replay.

    Args:
        lags_s: per turn, how much later than due it was sent (real seconds).
        watch: the samples taken meanwhile.
        time_scale: dilation of the replay, for the record.
        engine_late_s: last ``late_s`` of the emulated engine; None for a real one.
        engine_busy_s: its busy time.
        events_dropped: records missing from the stream.
        tool_stretch: how many times longer than recorded the tools ran, for the record.
        complaints: further reasons to read the result with care (lost tools, ...).
        limits: bounds; the defaults if None.
    """
    limits = limits or Limits()
    late_share = None
    if engine_late_s is not None:
        late_share = engine_late_s / engine_busy_s if engine_busy_s else 0.0
    lag_p99_s, loop_p99_s = percentile(lags_s, 99), percentile(watch.loop_lags_s, 99)
    checks = [
        ("replay lag p99", lag_p99_s, limits.lag_p99_s, "s"),
        ("event-loop delay p99", loop_p99_s, limits.loop_lag_p99_s, "s"),
        ("engine lateness share", late_share, limits.engine_late_share, ""),
    ]
    degraded, refused = [], []
    for name, value, (soft, hard), unit in checks:
        if value is None or value <= soft:
            continue
        bound = hard if value > hard else soft
        text = f"{name} {value:.3g}{unit} > {bound:g}{unit}"
        (refused if value > hard else degraded).append(text)
    if events_dropped:
        degraded.append(f"{events_dropped} events lost")
    reasons = [*refused, *degraded, *complaints]
    return ReplayQuality(
        verdict="refused" if refused else "degraded" if reasons else "ok",
        reasons=reasons,
        time_scale=time_scale,
        lag_p50_s=percentile(lags_s, 50),
        lag_p99_s=lag_p99_s,
        lag_max_s=max(lags_s, default=None),
        loop_lag_p99_s=loop_p99_s,
        cpu_usage_mean=mean(watch.cpu_usages),
        cpu_pressure_mean=mean(watch.pressures),
        engine_late_s=engine_late_s,
        engine_late_share=late_share,
        tool_stretch=tool_stretch,
        events_dropped=events_dropped,
    )
