# SPDX-License-Identifier: Apache-2.0
"""How many sessions a machine carries within a service level, and what more of it would bring.

The service level is a share of sessions that finish within alpha times their time alone. The
share falls with load; the load sought is where it crosses the wanted one, found by bisection on the
logarithm of the rate and interpolated. All machines meet the same sessions, seed by seed.
"""

from __future__ import annotations

import math
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mars.bench.experiment_plan import read
from mars.bench.ideal import ideal_time_s
from mars.bench.metrics import slowdowns
from mars.profiles import load_profile
from mars.sim.run import Machine, SimConfig, simulate
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, require_turns

SCHEMA = "mars.size/1"
SECONDS_PER_HOUR = 3600.0
GIGABYTE = 10**9
PRECISION = 1.08
"""Ratio of the loads around the answer at which bisection ends; then interpolation."""
FIRST_STRIDE = 1.2
"""Factor of the first step away from the guess; its square is that of the next, up to 2."""
MAX_TRIALS = 16
"""Loads tried on one machine."""
CROWDED = 1 / 3
"""More of the run's sessions than this at once: the run is mostly its beginning and end."""


class SizeError(ValueError):
    """The question makes no sense; the message names the flag and the fix."""


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """``share`` (0..1) of the sessions within ``alpha`` times their time alone."""

    alpha: float
    share: float

    @classmethod
    def parse(cls, text: str) -> ServiceLevel:
        """Read ``goodput@ALPHA=SHARE``.

        Raises:
            SizeError: another form, alpha not above 1, or a share outside 0..1.
        """
        found = re.fullmatch(r"goodput@(\d+(?:\.\d+)?)=(0?\.\d+|1(?:\.0*)?|0)", text)
        if found is None:
            raise SizeError(f"--slo {text!r}: give goodput@ALPHA=SHARE, such as goodput@3=0.95")
        alpha, share = float(found[1]), float(found[2])
        if alpha <= 1.0 or not 0.0 < share <= 1.0:
            raise SizeError(f"--slo {text!r}: ALPHA must be above 1, SHARE above 0")
        return cls(alpha, share)

    def __str__(self) -> str:
        return f"{self.share:.0%} of sessions within {self.alpha:g}x their time alone"


@dataclass(frozen=True, slots=True)
class Box:
    """A machine: replicas of one GPU each, that share its cores evenly; sessions likewise."""

    label: str
    num_gpus: int
    num_cpus: int
    kv_tokens: int
    config: SimConfig

    @property
    def replica(self) -> SimConfig:
        """What one GPU has: its own KV, and its part of the cores."""
        cpus = max(1, self.num_cpus // self.num_gpus)
        return replace(self.config, num_cpus=cpus, kv_tokens=self.kv_tokens, keeps_turns=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sessions to draw from, and how many of them."""

    trace: str
    num_sessions: int
    arrivals: str = "poisson"
    max_turns: int | None = None
    max_gap_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What one machine did at one load, means over seeds; rates are of the whole machine."""

    sessions_per_h: float
    share: float
    num_active: float
    sct_mean_s: float
    gpu_busy: float
    cpu_busy: float
    recompute_share: float


@dataclass(slots=True)
class Answer:
    """What one machine carries; None: not even the lightest load, or more than was tried."""

    box: Box
    sessions_per_h: float | None = None
    num_active: float | None = None
    trials: list[Trial] = field(default_factory=list[Trial])


def variants(base: Box, kv_bytes_per_token: int, *, core_step: int, gigabytes: float) -> list[Box]:
    """The machine, and the machine with more GPUs, cores or KV."""
    more_kv = base.kv_tokens + int(gigabytes * GIGABYTE / kv_bytes_per_token)
    return [
        base,
        replace(base, label="1 more GPU", num_gpus=base.num_gpus + 1),
        replace(
            base,
            label=f"{core_step} more core{'s'[: core_step > 1]}",
            num_cpus=base.num_cpus + core_step,
        ),
        replace(base, label=f"{gigabytes:g} GB more KV", kv_tokens=more_kv),
    ]


def base_box(config: SimConfig, num_gpus: int) -> tuple[Box, int]:
    """The machine asked about, and the bytes a token of KV takes on it.

    Raises:
        ProfileError: no such profile.
        SizeError: fewer cores than GPUs.
    """
    if config.num_cpus < num_gpus:
        raise SizeError(f"--cpus {config.num_cpus}: give every one of {num_gpus} GPUs a core")
    profile = load_profile(config.machine)
    kv_tokens = config.kv_tokens or profile.kv_tokens
    label = f"{num_gpus} x {profile.gpu}, {config.num_cpus} cores"
    return Box(label, num_gpus, config.num_cpus, kv_tokens, config), profile.kv_bytes_per_token


@lru_cache(maxsize=16)
def draw(load: Load, seed: int) -> list[TraceSession]:
    """The sessions of one seed, one arriving per second on average."""
    recorded = list(require_turns(read(load.trace)))
    bounds: dict[str, Any] = {"max_turns": load.max_turns, "max_gap_s": load.max_gap_s}
    return sample(
        recorded, load.num_sessions, seed=seed, rate=1.0, arrivals=load.arrivals, **bounds
    )


def at_rate(load: Load, seed: int, rate_per_s: float) -> list[TraceSession]:
    """The same sessions in the same pattern, at another rate."""
    import msgspec

    return [
        msgspec.structs.replace(session, arrival_s=session.arrival_s / rate_per_s)
        for session in draw(load, seed)
    ]


def measure(load: Load, config: SimConfig, seed: int, rate_per_s: float, alpha: float) -> Trial:
    """One run of one replica."""
    result = simulate(at_rate(load, seed, rate_per_s), config)
    summary, slow = result.summary, slowdowns(result.sessions)
    mean_s = summary.sct_mean_s or 0.0
    return Trial(
        sessions_per_h=rate_per_s * SECONDS_PER_HOUR,
        share=sum(x <= alpha for x in slow) / max(1, len(result.sessions)),
        num_active=sum(s.sct_s or 0.0 for s in result.sessions) / summary.duration_s,
        sct_mean_s=mean_s,
        gpu_busy=summary.gpu_busy or 0.0,
        cpu_busy=summary.cpu_busy or 0.0,
        recompute_share=summary.recomputed_tokens / max(1, summary.computed_tokens),
    )


Measure = Callable[[SimConfig, float], Trial]
"""A replica at a rate per second: means over seeds."""


@contextmanager
def measuring(
    load: Load, alpha: float, seeds: Sequence[int], num_workers: int
) -> Iterator[Measure]:
    """Measure over seeds, each a process of its own where there are several."""
    with ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn")
    ) as executor:

        def over_seeds(config: SimConfig, rate_per_s: float) -> Trial:
            runs = [executor.submit(measure, load, config, s, rate_per_s, alpha) for s in seeds]
            return mean_of([run.result() for run in runs])

        yield over_seeds


def mean_of(trials: Sequence[Trial]) -> Trial:
    """Means of all fields."""
    names = Trial.__slots__
    return Trial(*(float(np.mean([getattr(t, name) for t in trials])) for name in names))


def first_guess_per_s(load: Load, box: Box, seed: int) -> float:
    """A rate of one replica to begin with: as many at once as fit into the pool, half idle."""
    machine = Machine.of(box.replica)
    drawn = draw(load, seed)
    ideal_s = float(np.mean([ideal_time_s(s, machine.cost) for s in drawn]))
    peaks = [max(t.prompt_tokens + t.output_tokens for t in s.turns) for s in drawn]
    return max(1.0, 0.5 * box.kv_tokens / float(np.mean(peaks))) / ideal_s


def find(
    box: Box,
    level: ServiceLevel,
    guess_per_s: float,
    measure_at: Measure,
    tried: Callable[[Box, Trial], None],
) -> Answer:
    """The highest load of the machine within the service level.

    Args:
        box: the machine.
        level: the service level.
        guess_per_s: rate of one replica to begin with.
        measure_at: runs a replica.
        tried: told of every trial, for progress.
    """
    answer, replica = Answer(box), box.replica
    good: tuple[float, Trial] | None = None
    bad: tuple[float, Trial] | None = None
    rate, stride = guess_per_s, FIRST_STRIDE
    for _ in range(MAX_TRIALS):
        trial = _of_machine(measure_at(replica, rate), box.num_gpus)
        answer.trials.append(trial)
        tried(box, trial)
        if trial.share >= level.share:
            good = (rate, trial)
        else:
            bad = (rate, trial)
        if good is None or bad is None:
            rate *= 1.0 / stride if good is None else stride
            stride = min(2.0, stride * stride)
        elif bad[0] / good[0] <= PRECISION:
            break
        else:
            rate = math.sqrt(good[0] * bad[0])
    answer.trials.sort(key=lambda t: t.sessions_per_h)
    if good is not None and bad is not None:
        _interpolate(answer, level, good[1], bad[1])
    return answer


def _of_machine(trial: Trial, num_gpus: int) -> Trial:
    """A replica's trial as that of all replicas together."""
    return replace(
        trial,
        sessions_per_h=trial.sessions_per_h * num_gpus,
        num_active=trial.num_active * num_gpus,
    )


def _interpolate(answer: Answer, level: ServiceLevel, good: Trial, bad: Trial) -> None:
    fall = good.share - bad.share
    part = min(1.0, (good.share - level.share) / fall) if fall > 0 else 0.0
    low, high = good.sessions_per_h, bad.sessions_per_h
    answer.sessions_per_h = low * (high / low) ** part
    answer.num_active = good.num_active + part * (bad.num_active - good.num_active)
