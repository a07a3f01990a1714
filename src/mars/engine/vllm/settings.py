# SPDX-License-Identifier: Apache-2.0
"""The engine's settings as the core takes them."""

from __future__ import annotations

import msgspec

from mars.config import EngineConfig
from mars.core.held import RetentionLimits
from mars.core.policy import SchedulingPolicy, scheduling_policies
from mars.profiles import load_profile


def retention_limits(config: EngineConfig) -> RetentionLimits:
    """The bounds on retention, as the core takes them."""
    return RetentionLimits(**msgspec.structs.asdict(config.retention))


def make_policy(config: EngineConfig) -> SchedulingPolicy:
    """The scheduling policy; those that price recomputation get the profile's cost curve.

    Raises:
        UnknownPolicyError: no such policy, or an option that it lacks.
        ProfileError: no such profile.
    """
    offers = {"cost": load_profile(config.profile).cost} if config.profile else {}
    return scheduling_policies.create(config.policy, offers, **config.policy_options)
