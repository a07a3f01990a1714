# SPDX-License-Identifier: Apache-2.0
"""How many engine cores vLLM's flags start, each of which publishes its own events."""

from __future__ import annotations

from collections.abc import Sequence

from mars.cli.errors import CliError

_NAMES = ("--data-parallel-size", "-dp")


def engine_ranks(flags: Sequence[str], configured: int) -> int:
    """Data-parallel ranks that ``flags`` ask for; ``configured`` where they say nothing.

    Args:
        flags: vLLM's own, as the user gave them.
        configured: ``telemetry.engine_ranks``.

    Raises:
        CliError: no number, or not the one that was configured.
    """
    given = configured
    for index, flag in enumerate(flags):
        name, is_joined, value = flag.partition("=")
        if name.replace("_", "-") not in _NAMES:
            continue
        if not is_joined:
            value = flags[index + 1] if index + 1 < len(flags) else ""
        if not value.isdecimal() or int(value) < 1:
            raise CliError(
                f"{name} {value or '(nothing)'} after `--` is no number of ranks",
                f"{name} N, with N at least 1",
            )
        given = int(value)
    if configured not in (1, given):
        raise CliError(
            f"telemetry.engine_ranks is {configured}, but vLLM is to start {given} ranks",
            "leave telemetry.engine_ranks out: it follows --data-parallel-size",
        )
    return given
