# SPDX-License-Identifier: Apache-2.0
"""How many tools run at once."""

from __future__ import annotations

import math

from mars.tools.host import usable_cores

CORES_PER_TOOL = 1.0
"""Measured coding-agent tools use 0.4 to 1.0 cores while they run (test suites up to 2.5);
one core each is also what the MARS paper gives its tool workers."""


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
