# SPDX-License-Identifier: Apache-2.0
"""FIFO: tool calls start in the order they were asked for. The reference."""

from __future__ import annotations

from mars.core.policy import BaseToolPolicy, tool_policies


@tool_policies.register("fifo")
class Fifo(BaseToolPolicy):
    """First come, first served, on as many slots as configured; learns nothing."""
