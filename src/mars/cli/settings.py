# SPDX-License-Identifier: Apache-2.0
"""Flags that every verb with settings shares: a file, and single settings by dotted name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mars.cli.errors import CliError
from mars.config import MarsConfig, load


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SettingsFlags:
    """Where settings come from, beside the environment."""

    config: Annotated[Path | None, Parameter(alias="-c")] = None
    """TOML file with settings (or MARS_CONFIG); unknown keys are refused."""

    set: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """One setting, as in `--set engine.policy=fcfs`; may be repeated."""

    def read(self, flags: Mapping[str, Any]) -> MarsConfig:
        """All settings; ``flags`` are the verb's own, by dotted name, None if not given.

        Raises:
            CliError: a ``--set`` without ``=``.
            ConfigError: what :func:`mars.config.load` finds.
        """
        settings = dict(flags)
        for assignment in self.set:
            key, equals, value = assignment.partition("=")
            if not equals:
                raise CliError(f"--set {assignment!r} has no '='", "write --set section.name=VALUE")
            settings[key.strip()] = value.strip()
        return load(self.config or os.environ.get("MARS_CONFIG"), flags=settings)


NO_SETTINGS = SettingsFlags()
"""Neither file nor flag."""
