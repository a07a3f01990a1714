# SPDX-License-Identifier: Apache-2.0
"""`mars exec`: one command under the tool runtime."""

from __future__ import annotations

import os
import sys
import uuid
from typing import Annotated

from cyclopts import App, Parameter

from mars.cli.errors import CliError
from mars.cli.settings import NO_SETTINGS, SettingsFlags
from mars.tools.cgroup import ControlGroups
from mars.tools.configured import cores_of, limits_of
from mars.tools.request import ToolRequest, ToolResult
from mars.tools.shim import EventPoster, run_in_foreground, warn_on_stderr
from mars.tools.slot_client import WAIT_S, SlotClient

app = App(
    name="exec",
    help_epilogue="""**Examples**

```sh
mars exec -- pytest -q
mars exec --timeout-s 60 --memory-mb 512 -- bash -c 'make -j4'
mars exec --report -- ./build.sh        # says what it used, on standard error
MARS_GATEWAY=http://127.0.0.1:8000 mars exec --session s1 -- cargo build
mars exec --session s1 --mcp -- npx some-mcp-server    # as the command in an MCP client
```

With MARS_GATEWAY set, the gateway is told of the start and the end (with MARS_API_KEY where
it asks for one). With MARS_TOOLS set to the socket of a tool server, the command waits there
for a slot, MARS_TOOLS_WAIT_S seconds at most (60). When either is away, the command runs all
the same, with a warning.

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
    keep_background: Annotated[bool, Parameter(negative=())] = False,
    mcp: Annotated[bool, Parameter(negative=())] = False,
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
    keep_background
        Leave what it started in the background alive when it ends.
    mcp
        The command is an MCP server on stdio: pass its messages, and treat each of its
        tool calls, instead of the whole, as a tool call.
    report
        Say at the end what it used.
    """
    if not command:
        raise CliError("there is no command", "write it after --, as in: mars exec -- pytest -q")
    session_id = session or os.environ.get("MARS_SESSION") or f"exec-{uuid.uuid4().hex[:12]}"
    poster = EventPoster(os.environ.get("MARS_GATEWAY"), os.environ.get("MARS_API_KEY"))
    if mcp:
        sys.exit(_run_mcp(command, session_id, poster))
    config = settings.read(
        {
            "tools.timeout_s": timeout_s,
            "tools.memory_bytes": memory_mb and memory_mb * 2**20,
        }
    ).tools
    request = ToolRequest(
        session_id=session_id,
        tool_call_id=uuid.uuid4().hex,
        tool_name=tool,
        argv=command,
        timeout_s=config.timeout_s,
        keeps_background=keep_background,
        limits=limits_of(config),
    )
    cores = cores_of(config)
    groups = ControlGroups()
    try:
        result = run_in_foreground(request, poster, groups, slot_client(), cores)
    finally:
        groups.close()
    for notice in result.notices:
        print(f"mars: {notice}", file=sys.stderr)
    if report:
        print(_account(result), file=sys.stderr)
    sys.exit(result.exit_code if result.exit_code >= 0 else 128 - result.exit_code)


def _run_mcp(command: tuple[str, ...], session_id: str, poster: EventPoster) -> int:
    from mars.tools.mcp_proxy import run_proxy

    try:
        code = run_proxy(command, session_id, poster, slot_client)
    except OSError as error:
        raise CliError(
            f"cannot start the MCP server {command[0]!r}: {error.strerror}", "check the command"
        ) from None
    return code if code >= 0 else 128 - code


def slot_client() -> SlotClient | None:
    """A slot of the tool server that ``MARS_TOOLS`` names; None where it names none.

    Raises:
        CliError: ``MARS_TOOLS_WAIT_S`` is no number.
    """
    path = os.environ.get("MARS_TOOLS")
    if not path:
        return None
    wait = os.environ.get("MARS_TOOLS_WAIT_S", str(WAIT_S))
    try:
        return SlotClient(path, float(wait), warn_on_stderr)
    except ValueError:
        raise CliError(f"MARS_TOOLS_WAIT_S={wait!r} is not a number", "give seconds") from None


def _account(result: ToolResult) -> str:
    return (
        f"mars: {result.duration_s:.2f} s, {result.cpu_seconds:.2f} CPU s, "
        f"peak {result.peak_bytes / 2**20:.0f} MiB, exit code {result.exit_code}"
    )
