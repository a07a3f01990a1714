# SPDX-License-Identifier: Apache-2.0
"""The command line's entry: names the verbs, loads the one that is asked for."""

from __future__ import annotations

from cyclopts import App

from mars import __version__

app = App(
    name="mars",
    help="Adaptive co-scheduling of GPU inference and CPU tools for LLM agents.",
    version=__version__,
)


def main() -> None:
    """Run the `mars` command."""
    app()
