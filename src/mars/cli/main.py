# SPDX-License-Identifier: Apache-2.0
"""The command line's entry: names the verbs and loads only the one that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

from mars import __version__
from mars.cli.errors import FAILED, describe

VERBS = {
    "serve": ("mars.cli.serve:app", "Start vLLM with MARS in it and in front of it."),
    "gateway": ("mars.cli.gateway:app", "Put the control plane before a running vLLM."),
    "bench": ("mars.cli.bench:app", "Replay agent traces and compare policies."),
    "trace": ("mars.cli.trace:app", "Convert, describe, cut and make traces."),
    "sim": ("mars.cli.sim:app", "Run one experiment in virtual time."),
    "explain": ("mars.cli.explain:app", "Tell where a session's time went, and why."),
    "experiment": ("mars.cli.experiment:app", "Compare policies over loads, seeds and machines."),
    "size": ("mars.cli.size:app", "How many sessions a machine carries, and what more brings."),
    "calibrate": ("mars.cli.calibrate:app", "Fit a cost profile to a live engine."),
    "doctor": ("mars.cli.doctor:app", "Check this machine, and say what to fix."),
    "exec": ("mars.cli.exec:app", "Run one command under the tool runtime."),
}
"""Each verb's module and its line in `mars --help`, which loads none of them."""


def build(arguments: Sequence[str]) -> App:
    """The application, for these arguments."""
    app = App(
        name="mars",
        help="Adaptive co-scheduling of GPU inference and CPU tools for LLM agents.",
        help_epilogue="`mars VERB --help` shows examples. Every setting can come from a file "
        "(`--config`), from `MARS_SECTION__NAME`, or from `--set section.name=VALUE`.",
        version=__version__,
        help_format="markdown",
    )
    for name, (module, summary) in VERBS.items():
        # A summary given here would hide the verb's own, longer help.
        own = arguments[:1] == [name]
        app.command(module, name=name, **({} if own else {"help": summary}))
    return app


def main() -> None:
    """Run the `mars` command. Errors of use or surroundings are one message, no traceback."""
    arguments = sys.argv[1:]
    try:
        build(arguments)(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does.
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        lines = describe(error)
        if lines is None:
            raise
        print(f"mars: error: {lines[0]}", file=sys.stderr)
        for line in lines[1:]:
            print(f"  {line}", file=sys.stderr)
        sys.exit(FAILED)
