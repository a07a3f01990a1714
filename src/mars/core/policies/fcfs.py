# SPDX-License-Identifier: Apache-2.0
"""FCFS: stock vLLM's order, eviction and preemption, untouched. The reference."""

from __future__ import annotations

from mars.core.policy import BasePolicy, scheduling_policies


@scheduling_policies.register("fcfs")
class Fcfs(BasePolicy):
    """First come, first served; plain LRU; nothing is held over a tool call.

    Ignores sessions altogether, as vLLM does: the plug-in only watches.
    """

    keeps_engine_order = True
