# SPDX-License-Identifier: Apache-2.0
"""Settings: one typed tree, read from TOML, then environment, then flags.

A setting has one name everywhere: ``gateway.port`` is ``port`` under ``[gateway]`` in TOML,
``MARS_GATEWAY__PORT`` in the environment and ``--set gateway.port=...`` on the command line.
"""

from mars.config.load import ConfigError, check_policies, convert, engine_config, load
from mars.config.schema import (
    EngineConfig,
    GatewayConfig,
    MarsConfig,
    RetentionConfig,
    TelemetryConfig,
    ToolsConfig,
    is_loopback,
)
from mars.config.tenants import KeyConfig

__all__ = [
    "ConfigError",
    "EngineConfig",
    "GatewayConfig",
    "KeyConfig",
    "MarsConfig",
    "RetentionConfig",
    "TelemetryConfig",
    "ToolsConfig",
    "check_policies",
    "convert",
    "engine_config",
    "is_loopback",
    "load",
]
