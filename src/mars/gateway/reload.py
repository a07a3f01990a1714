# SPDX-License-Identifier: Apache-2.0
"""Settings that change while the gateway runs: which they are, and what changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from mars.config import GatewayConfig, MarsConfig
from mars.config.keys import known_keys

Reread = Callable[[], MarsConfig]
"""Reads all settings anew, from wherever they came at the start."""

TUNABLE = frozenset(
    {
        "gateway.admin_key",
        "gateway.admission",
        "gateway.admission_options",
        "gateway.api_key",
        "gateway.control_interval_s",
        "gateway.drain_s",
        "gateway.engine_api_key",
        "gateway.engine_wait_s",
        "gateway.final_answer_s",
        "gateway.hold_budget_s",
        "gateway.hold_tool_replies",
        "gateway.idle_session_s",
        "gateway.keepalive_s",
        "gateway.keys",
        "gateway.max_body_bytes",
        "gateway.max_header_bytes",
        "gateway.metrics_key",
        "gateway.stamp_priority",
        "gateway.telemetry_stale_s",
        "gateway.tool_hold_s",
    }
)
"""The settings that a reload changes; every other one needs a restart."""


@dataclass(slots=True, frozen=True)
class Change:
    """What a reload does: names of settings, never their values."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def change_between(old: MarsConfig, new: MarsConfig) -> Change:
    """The settings that differ, by whether they can change while the gateway runs."""
    names = [name for name in known_keys() if _value(old, name) != _value(new, name)]
    return Change(
        changed=tuple(name for name in names if name in TUNABLE),
        needs_restart=tuple(name for name in names if name not in TUNABLE),
    )


def with_changes(old: GatewayConfig, new: MarsConfig, change: Change) -> GatewayConfig:
    """The old settings with what changed taken from the new ones."""
    names = (name.removeprefix("gateway.") for name in change.changed)
    return msgspec.structs.replace(old, **{name: getattr(new.gateway, name) for name in names})


def _value(config: MarsConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
