# SPDX-License-Identifier: Apache-2.0
"""How many tools run at once."""

from __future__ import annotations

import math
import os

from mars.telemetry.host import usable_cores

CORES_PER_TOOL = 1.0
"""Measured coding-agent tools use 0.4 to 1.0 cores while they run (test suites up to 2.5);
one core each is also what the MARS paper gives its tool workers."""


def parse_cores(text: str) -> frozenset[int]:
    """``2-5,8`` -> {2, 3, 4, 5, 8}, as the kernel writes CPU lists.

    Raises:
        ValueError: not such a list, or a core this process may not use.
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is not a list of cores, as in 2-5,8")
        cores.update(range(int(first), int(last if dash else first) + 1))
    usable = os.sched_getaffinity(0)
    if not cores or not cores <= usable:
        missing = sorted(cores - usable)
        raise ValueError(f"cores {missing} of {text!r} are not usable here: {sorted(usable)} are")
    return frozenset(cores)


def default_slots(cores: float | None = None, cores_per_tool: float = CORES_PER_TOOL) -> int:
    """Slots for a pool: as many tools as keep ``cores`` busy, at least one.

    Args:
        cores: Cores for tools; all that this process may use by default.
        cores_per_tool: Mean cores a running tool uses.
    """
    if cores_per_tool <= 0:
        raise ValueError(f"cores_per_tool must be positive, not {cores_per_tool}")
    available = usable_cores() if cores is None else cores
    return max(1, math.floor(available / cores_per_tool + 1e-9))
