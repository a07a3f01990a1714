# SPDX-License-Identifier: Apache-2.0
"""The engine's settings as the core takes them."""

from __future__ import annotations

from typing import Any

import msgspec

from mars.config import EngineConfig
from mars.core.held import RetentionLimits
from mars.core.policy import SchedulingPolicy, scheduling_policies
from mars.engine.vllm.host import HostFacts
from mars.profiles import load_profile


def retention_limits(config: EngineConfig) -> RetentionLimits:
    """The bounds on retention, as the core takes them."""
    return RetentionLimits(**msgspec.structs.asdict(config.retention))


def make_policy(config: EngineConfig, host: HostFacts | None = None) -> SchedulingPolicy:
    """The scheduling policy; those that price recomputation get the profile's cost curve.

    With host memory behind the GPU's the price of a reload comes with it.

    Raises:
        UnknownPolicyError: no such policy, or an option that it lacks.
        ProfileError: no such profile.
    """
    profile = load_profile(config.profile) if config.profile else None
    offers: dict[str, Any] = {}
    if host is not None:
        offers["cost"] = host.prices(profile)
    elif profile is not None:
        offers["cost"] = profile.cost
    return scheduling_policies.create(config.policy, offers, **config.policy_options)
