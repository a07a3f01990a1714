# SPDX-License-Identifier: Apache-2.0
"""`mars-shell`: a shell for agents, whose every command runs under the tool runtime.

Named as an agent's shell (``SHELL``, ``CLAUDE_CODE_SHELL_PREFIX``, first on ``PATH`` as
``bash``), it runs each ``-c COMMAND`` as one tool call of that agent's session, and is the
real shell for everything else. What a command starts by itself is part of its call.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from mars.cli.exec import slot_client
from mars.config import load
from mars.tools.cgroup import ControlGroups
from mars.tools.configured import cores_of, limits_of
from mars.tools.request import ToolRequest
from mars.tools.shim import EventPoster, run_in_foreground

REAL_SHELL = "/bin/bash"
SESSION_VARIABLES = ("MARS_SESSION", "CLAUDE_CODE_SESSION_ID", "CODEX_SESSION_ID")
"""What agents put into the environment of their tools (CLIENTS section 2), ours first."""


def shell_arguments(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments for the real shell, and whether they are one command.

    A single word that is no file is a whole command: how Claude Code calls its prefix.
    """
    given = list(arguments)
    if len(given) == 1 and not given[0].startswith("-") and not Path(given[0]).is_file():
        return ["-c", given[0]], True
    options = [word for word in given[:-1] if word.startswith("-") and not word.startswith("--")]
    return given, any("c" in word for word in options)


def main() -> None:
    """Run the command, or become the real shell."""
    shell = os.environ.get("MARS_REAL_SHELL", REAL_SHELL)
    arguments, is_command = shell_arguments(sys.argv[1:])
    if not is_command or "MARS_TOOL_CALL" in os.environ:
        os.execv(shell, [shell, *arguments])  # noqa: S606
    config = load(os.environ.get("MARS_CONFIG")).tools
    session_id = next((os.environ[n] for n in SESSION_VARIABLES if os.environ.get(n)), None)
    request = ToolRequest(
        session_id=session_id or f"shell-{os.getppid()}",
        tool_call_id=os.environ.get("CODEX_TOOL_CALL_ID") or uuid.uuid4().hex,
        tool_name="shell",
        argv=(shell, *arguments),
        timeout_s=config.timeout_s,
        keeps_background=True,  # agents start servers this way, and stop them later
        limits=limits_of(config),
    )
    cores = cores_of(config)
    groups = ControlGroups()
    poster = EventPoster(os.environ.get("MARS_GATEWAY"), os.environ.get("MARS_API_KEY"))
    try:
        result = run_in_foreground(request, poster, groups, slot_client(), cores)
    finally:
        groups.close()
    for notice in result.notices:
        sys.stderr.write(f"mars: {notice}\n")
    sys.exit(result.exit_code if result.exit_code >= 0 else 128 - result.exit_code)


if __name__ == "__main__":
    main()
