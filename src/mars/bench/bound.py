# SPDX-License-Identifier: Apache-2.0
"""A lower bound on the mean completion time that any schedule can reach, clairvoyant ones too.

Let a session bring work ``w_u`` to a machine of rate 1 in units ``u``, none of which can be
done before its head (time alone before it, from the arrival), and after each of which its
tail remains (time alone). In any schedule ``C >= t_u + tail_u`` for every unit, so for any
weights that sum to 1 ``C >= sum_u weight_u (t_u + tail_u)``; here weights are proportional to
work. Summed over sessions, ``sum C >= sum_j (mean busy time M_j + mean tail_j)``. What is left is
to minimise ``sum_j M_j`` over all preemptive schedules of one machine with release dates:
always serving the unit with the highest weight per work, that is, of the session with the
least work in all, is optimal (Goemans, Queyranne, Schulz, Skutella, Wang: "Single machine
scheduling with release dates", SIAM J. Discrete Math. 15(2), 2002, lemma 2.2; it is the interchange
argument of preemptive shortest-processing-time-first).

Machines are relaxed one at a time: the GPU with its KV pool, in several mixes
(:mod:`mars.bench.bound_work` proves the charges), the CPU cores, and both with each session's
weight divided in proportion to what it asks of either. The bound is the largest of these,
and of the sum of times alone. It is not tight: real batches are less than perfect, and a
session cannot be in two queues at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mars.bench.bound_work import Box, Demand, Mix, demands
from mars.traces.schema import TraceSession

MIXES = tuple(
    Mix(theta=theta, memory=memory)
    for theta in (0.0, 0.5, 0.75, 1.0)
    for memory in (0.0, 0.1, 0.2, 0.3, 0.5)
)
"""Relaxations tried; each gives a bound, and the largest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Mean completion times in seconds; ``mean_s`` is the largest of the others.

    ``alone_s``: nobody ever in the way. ``gpu_s``: the GPU and its KV pool are shared.
    ``cpu_s``: the cores are. ``both_s``: both, by weights.
    """

    mean_s: float
    alone_s: float
    gpu_s: float
    cpu_s: float
    both_s: float
    num_sessions: int


@dataclass(slots=True)
class _Unit:
    """Work (seconds) of one session on a relaxed machine."""

    release_s: float
    tail_s: float
    work_s: float


def lower_bound(sessions: Sequence[TraceSession], box: Box) -> Bound | None:
    """The bound for one draw of sessions on one machine; None when no session fits.

    Args:
        sessions: the trace, arrivals included.
        box: machine; ``pool_tokens`` and ``chunk_tokens`` as the engine has them.
    """
    found = demands(sessions, box, MIXES)
    if not found:
        return None
    num = len(found)
    arrived_s = sum(d.arrival_s for d in found)
    alone_s = sum(d.alone_s for d in found) / num

    def mean_s(total_s: float) -> float:
        return max(0.0, (total_s - arrived_s) / num)

    cpu_units = [_cpu_units(d) for d in found]
    gpu_all = [[_gpu_units(d, i) for d in found] for i in range(len(MIXES))]
    weights = [1.0] * num
    ends_s = [d.arrival_s + d.alone_s for d in found]
    cpu_s = mean_s(_least_total_s(cpu_units, weights, ends_s))
    gpu_totals = [_least_total_s(units, weights, ends_s) for units in gpu_all]
    best = max(range(len(MIXES)), key=gpu_totals.__getitem__)
    both_s = mean_s(_divided(gpu_all[best], cpu_units, ends_s))
    gpu_s = mean_s(gpu_totals[best])
    return Bound(
        mean_s=max(alone_s, gpu_s, cpu_s, both_s),
        alone_s=alone_s,
        gpu_s=gpu_s,
        cpu_s=cpu_s,
        both_s=both_s,
        num_sessions=num,
    )


def _gpu_units(demand: Demand, mix: int) -> list[_Unit]:
    return [
        _Unit(demand.arrival_s + need.head_s, need.tail_s, need.work_s[mix])
        for need in demand.needs
        if need.work_s[mix] > 0.0
    ]


def _cpu_units(demand: Demand) -> list[_Unit]:
    return [
        _Unit(demand.arrival_s + need.head_s, need.tail_s, need.cpu_s)
        for need in demand.needs
        if need.cpu_s > 0.0
    ]


def _divided(
    gpu: Sequence[list[_Unit]], cpu: Sequence[list[_Unit]], ends_s: Sequence[float]
) -> float:
    """Each session's weight divided between the machines by what it asks of either."""
    shares: list[float] = []
    for gpu_units, cpu_units in zip(gpu, cpu, strict=True):
        gpu_s, cpu_s = (sum(u.work_s for u in units) for units in (gpu_units, cpu_units))
        shares.append(gpu_s / (gpu_s + cpu_s) if gpu_s + cpu_s else 1.0)
    on_gpu = _least_total_s(gpu, shares, ends_s)
    return on_gpu + _least_total_s(cpu, [1.0 - share for share in shares], ends_s)


def _least_total_s(
    units: Sequence[Sequence[_Unit]], weights: Sequence[float], ends_s: Sequence[float]
) -> float:
    """Least ``sum_j weight_j (M_j + mean tail_j)``; who brings no work counts its end alone."""
    total_s = 0.0
    releases: list[tuple[float, float, int, float]] = []
    for index, (own, weight) in enumerate(zip(units, weights, strict=True)):
        work_s = sum(u.work_s for u in own)
        if not work_s:
            total_s += weight * ends_s[index]
            continue
        if not weight:
            continue
        total_s += weight * sum(u.work_s * u.tail_s for u in own) / work_s
        density = weight / work_s
        releases += [(u.release_s, -density, index, u.work_s) for u in own]
    releases.sort()
    return total_s + _weighted_busy_s(releases)


def _weighted_busy_s(releases: Sequence[tuple[float, float, int, float]]) -> float:
    """``sum of density x integral of t over its service`` when the densest goes first.

    Args:
        releases: (release, -density, tie-break, work) by release.
    """
    total, now, place = 0.0, 0.0, 0
    ready: list[tuple[float, int, float]] = []
    while ready or place < len(releases):
        if not ready:
            now = max(now, releases[place][0])
        while place < len(releases) and releases[place][0] <= now:
            _, density, tie, work_s = releases[place]
            heapq.heappush(ready, (density, tie, work_s))
            place += 1
        density, tie, left_s = heapq.heappop(ready)
        until = releases[place][0] if place < len(releases) else float("inf")
        served_s = min(left_s, until - now)
        total -= density * served_s * (now + 0.5 * served_s)
        now += served_s
        if served_s < left_s:
            heapq.heappush(ready, (density, tie, left_s - served_s))
    return total
