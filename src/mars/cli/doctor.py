# SPDX-License-Identifier: Apache-2.0
"""`mars doctor`: is this machine fit, and what to do where it is not."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mars.cli.checks import CHECKS
from mars.cli.findings import Finding, Verdict
from mars.cli.settings import NO_SETTINGS, SettingsFlags

app = App(
    name="doctor",
    help_epilogue="""**Examples**

```sh
mars doctor
mars doctor --json | jq '.[] | select(.verdict == "fail")'
```

Exit status 1 when something fails; a warning says what works less well.
""",
)

_COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@app.default
def doctor(
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
    settings: SettingsFlags = NO_SETTINGS,
) -> None:
    """Check this machine, vLLM and its seams, the settings, keys, and whether the engine answers.

    Parameters
    ----------
    json
        Print the findings as JSON.
    """
    config = settings.read({})
    with Console(stderr=True).status("looking around; vLLM takes a few seconds to load"):
        findings = [check(config) for check in CHECKS]
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings)).decode() + "\n")
    else:
        print_findings(findings)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        sys.exit(1)


def print_findings(findings: list[Finding]) -> None:
    """Show findings as a table, each fix below what it mends."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "what", "found"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        table.add_row(f"[{colour}]{finding.verdict.value}[/]", finding.what, escape(finding.found))
        if finding.fix:
            table.add_row("", "", f"[dim]fix:[/] {escape(finding.fix)}")
    Console().print(table)
