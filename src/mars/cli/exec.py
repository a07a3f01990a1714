# SPDX-License-Identifier: Apache-2.0
"""`mars exec`: one command under the tool runtime."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from typing import Annotated

from cyclopts import App, Parameter

from mars.cli.errors import CliError
from mars.cli.settings import NO_SETTINGS, SettingsFlags
from mars.tools.pool import ToolPool
from mars.tools.request import ToolLimits, ToolRequest, ToolResult

app = App(
    name="exec",
    help_epilogue="""**Examples**

```sh
mars exec -- pytest -q
mars exec --timeout-s 60 --memory-mb 512 -- bash -c 'make -j4'
mars exec --report -- ./build.sh        # says what it used, on standard error
```

Exit status: the command's; 128 + N when signal N ended it.
""",
)


@app.default
def run_tool(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    session: str | None = None,
    tool: str = "exec",
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    report: Annotated[bool, Parameter(negative=())] = False,
    settings: SettingsFlags = NO_SETTINGS,
) -> None:
    """Run a command as a tool call: bounded, measured, and with no process left behind.

    Parameters
    ----------
    command
        The command and its arguments, after `--`.
    session
        Session it belongs to; default: MARS_SESSION, else one of its own.
    tool
        Class of the tool, what tool times are learned by.
    timeout_s
        Kill it, with all it started, after so long [tools.timeout_s].
    memory_mb
        End it when it uses more memory [tools.memory_bytes].
    report
        Say at the end what it used.
    """
    if not command:
        raise CliError("there is no command", "write it after --, as in: mars exec -- pytest -q")
    config = settings.read(
        {
            "tools.timeout_s": timeout_s,
            "tools.memory_bytes": memory_mb and memory_mb * 2**20,
        }
    ).tools
    request = ToolRequest(
        session_id=session or os.environ.get("MARS_SESSION") or f"exec-{uuid.uuid4().hex[:12]}",
        tool_call_id=uuid.uuid4().hex,
        tool_name=tool,
        argv=command,
        timeout_s=config.timeout_s,
        limits=ToolLimits(memory_bytes=config.memory_bytes, output_bytes=config.output_bytes),
    )
    result = asyncio.run(_run(request))
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    if report:
        print(_account(result), file=sys.stderr)
    sys.exit(result.exit_code if result.exit_code >= 0 else 128 - result.exit_code)


async def _run(request: ToolRequest) -> ToolResult:
    async with ToolPool(slots=1) as pool:
        return await pool.run(request)


def _account(result: ToolResult) -> str:
    return (
        f"mars: {result.duration_s:.2f} s, {result.cpu_seconds:.2f} CPU s, "
        f"peak {result.peak_bytes / 2**20:.0f} MiB, exit code {result.exit_code}"
    )
