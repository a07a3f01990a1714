# SPDX-License-Identifier: Apache-2.0
"""The fitted distributions of ``generator_params.json`` and how to draw from them.

A lognormal mixture is a list of (weight, median, log standard deviation). The file names the
recording behind each fit; draws come from a seeded generator only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Mixture = Sequence[Sequence[float]]

Z_90 = 1.2816
"""The 90th percentile of the standard normal distribution."""


@cache
def generator_params() -> dict[str, Any]:
    """Return the fits that ship with the package."""
    text = files("mars.traces").joinpath("generator_params.json").read_bytes()
    params: dict[str, Any] = msgspec.json.decode(text)
    return params


def draw_mixture(rng: Generator, mixture: Mixture, count: int) -> NDArray[np.float64]:
    """Draw ``count`` values of a lognormal mixture."""
    weights, medians, sigmas = np.array(mixture, dtype=np.float64).T
    part = rng.choice(len(weights), size=count, p=weights / weights.sum())
    return medians[part] * np.exp(sigmas[part] * rng.standard_normal(count))


def density(value: float, mixture: Mixture) -> float:
    """Return the density of ln(value) under a lognormal mixture."""
    total = 0.0
    for weight, median, sigma in mixture:
        z = (math.log(value) - math.log(median)) / sigma
        total += weight * math.exp(-z * z / 2.0) / (sigma * math.sqrt(2.0 * math.pi))
    return total


def draw_quantiles(rng: Generator, quantiles: dict[str, float], count: int) -> NDArray[np.float64]:
    """Draw from published quantiles, log-linear between them.

    Below the first and above the last the next segment is prolonged to rank 0 and 1 at the
    median slope; ``max``, ``cap`` or ``p99`` bound the result.
    """
    ranks = [int(name[1:]) / 100.0 for name in quantiles if name[0] == "p"]
    logs = [math.log(max(value, 1e-6)) for name, value in quantiles.items() if name[0] == "p"]
    ends_low = logs[0] - (logs[1] - logs[0]) * 0.5
    ends_high = logs[-1] + (logs[-1] - logs[-2]) * 0.25
    bound = quantiles.get("max", quantiles.get("cap", math.inf))
    uniform = rng.random(count)
    drawn = np.interp(uniform, [0.0, *ranks, 1.0], [ends_low, *logs, ends_high])
    return np.minimum(np.exp(drawn), bound)
