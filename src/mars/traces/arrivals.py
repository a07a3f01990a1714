# SPDX-License-Identifier: Apache-2.0
"""When sessions arrive: Poisson, Gamma (bursty), groups at once, evenly, or all together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mars.traces.errors import TraceError

PROCESSES = ("poisson", "gamma:CV", "burst:SIZE", "even", "together")


def arrival_times(
    count: int, rate: float, process: str = "poisson", *, seed: int = 0
) -> NDArray[np.float64]:
    """Return ``count`` ascending arrival times in seconds; the first is 0.

    The same seed at another rate gives the same pattern, stretched: runs at several loads stay
    paired.

    Args:
        count: how many sessions.
        rate: sessions per second, on average.
        process: "poisson"; "gamma:CV", gaps of that coefficient of variation (public serving
            traces show 1 to 6); "burst:SIZE", groups of that many at once, Poisson apart;
            "even"; "together", all at 0.
        seed: of the pattern.

    Raises:
        TraceError: the process or its argument is unknown, or the rate not positive.
    """
    name, _, argument = process.partition(":")
    if name == "together":
        return np.zeros(count)
    if not rate > 0.0:
        raise TraceError(f"{rate} is not positive. Give sessions per second.", field="rate")
    rng = np.random.default_rng([seed, 0xA771])
    if name == "burst":
        size = int(_positive(argument or "8", process))
        groups = rng.exponential(size, -(-count // size))
        gaps = np.zeros(count)
        gaps[::size] = groups
    else:
        gaps = _gaps(rng, count, name, argument, process)
    gaps[:1] = 0.0
    return np.cumsum(gaps) / rate


def _gaps(
    rng: np.random.Generator, count: int, name: str, argument: str, process: str
) -> NDArray[np.float64]:
    if name == "even":
        return np.ones(count)
    if name == "poisson":
        return rng.exponential(1.0, count)
    if name == "gamma":
        shape = _positive(argument or "2", process) ** -2
        return rng.gamma(shape, 1.0 / shape, count)
    raise TraceError(
        f"there is no arrival process {process!r}. Choose one of {', '.join(PROCESSES)}.",
        field="arrivals",
    )


def _positive(text: str, process: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0.0 or (process.startswith("burst") and value < 1.0):
        raise TraceError(
            f"{process!r} needs a positive number after the colon, as in gamma:2 or burst:8.",
            field="arrivals",
        )
    return value
