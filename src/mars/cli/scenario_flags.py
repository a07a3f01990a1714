# SPDX-License-Identifier: Apache-2.0
"""Flags that every verb with a scenario shares: single values in place of the file's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from mars.bench.scenario import Scenario
from mars.cli.errors import CliError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ScenarioFlags:
    """What replaces values of the scenario file."""

    sessions: int | None = None
    """How many sessions."""

    turns: int | None = None
    """Most turns of a session."""

    time_scale: float | None = None
    """Dilation of everything timed: 2 halves the load on a slow machine and takes twice as
    long; results are divided by it."""

    kv_tokens: int | None = None
    """KV pool of the emulated accelerator: less is more pressure."""

    tool_slots: int | None = None
    """Tool calls that run at once."""

    policies: str = ""
    """Which, separated by commas: labels of the scenario, or POLICY, or POLICY@ADMISSION."""

    seed: int | None = None
    """Of the choice of sessions and of their arrivals."""

    def read(self, path: Path, default: Path, time_scale: float | None = None) -> Scenario:
        """The scenario of a file with these values in it.

        Args:
            path: the file.
            default: the verb's own, for the advice.
            time_scale: where no flag says otherwise; None: the file's.

        Raises:
            CliError: there is no such file.
            ScenarioError: a value out of bounds, or the file is none.
        """
        from mars.bench.demo import override
        from mars.bench.scenario import load_scenario

        if not path.exists():
            raise CliError(
                f"there is no scenario {path}",
                f"run it where {default} is (the repository), or name a file",
            )
        return override(
            load_scenario(path),
            workload={"sessions": self.sessions, "turns": self.turns},
            machine={
                "time_scale": time_scale if self.time_scale is None else self.time_scale,
                "kv_tokens": self.kv_tokens,
                "tool_slots": self.tool_slots,
            },
            policies=[name for name in self.policies.split(",") if name],
            seed=self.seed,
        )


NO_FLAGS = ScenarioFlags()
"""The file as it is."""
