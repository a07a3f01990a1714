# SPDX-License-Identifier: Apache-2.0
"""A tool pool, and the bounds of its calls, from the settings."""

from __future__ import annotations

import os
from collections.abc import Callable

from mars.config import ConfigError
from mars.config.schema import ToolsConfig
from mars.core.events import Event
from mars.core.policy import tool_policies
from mars.tools.pool import ToolPool
from mars.tools.process import ToolRunner
from mars.tools.request import ToolLimits
from mars.tools.slots import default_slots, parse_cores


def make_pool(config: ToolsConfig, emit: Callable[[Event], None] | None = None) -> ToolPool:
    """The pool that the ``tools`` section describes.

    Raises:
        ConfigError: ``tools.cpu_list`` names cores there are not.
        UnknownPolicyError: no tool policy of that name, or an option it lacks.
    """
    cores = cores_of(config)
    return ToolPool(
        config.slots or default_slots(len(cores) if cores else None),
        tool_policies.create(config.policy, **config.policy_options),
        emit,
        runner=ToolRunner(cores=cores),
    )


def cores_of(config: ToolsConfig) -> frozenset[int] | None:
    """The cores for tools; None: all.

    Raises:
        ConfigError: ``tools.cpu_list`` names cores there are not.
    """
    if config.cpu_list is None:
        return None
    try:
        return parse_cores(config.cpu_list)
    except ValueError as error:
        raise ConfigError(f"tools.cpu_list: {error}") from None


def cores_beside(config: ToolsConfig) -> frozenset[int] | None:
    """The cores that are left to everything else; None: all, since tools may use any or all.

    Raises:
        ConfigError: ``tools.cpu_list`` names cores there are not.
    """
    cores = cores_of(config)
    return frozenset(os.sched_getaffinity(0)) - cores or None if cores else None


def limits_of(config: ToolsConfig) -> ToolLimits:
    """The bounds of one call."""
    return ToolLimits(
        memory_bytes=config.memory_bytes,
        disk_floor_bytes=config.disk_floor_bytes,
        output_bytes=config.output_bytes,
    )
