# SPDX-License-Identifier: Apache-2.0
"""An agent's own terminal under the tool runtime, with the commands agents really use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mars.cli.shell import shell_arguments
from mars.config import ToolsConfig
from mars.core.events import Event, ToolFinished
from mars.tools.configured import make_pool
from mars.tools.pool import ToolPool
from mars.tools.server import ToolServer


@pytest.mark.parametrize(
    ("given", "expected", "is_command"),
    [
        (["-c", "ls"], ["-c", "ls"], True),
        (["-lc", "ls"], ["-lc", "ls"], True),
        (["-l", "-c", "ls"], ["-l", "-c", "ls"], True),
        (["cd x && ls"], ["-c", "cd x && ls"], True),
        ([], [], False),
        (["-i"], ["-i"], False),
        (["--norc", "-i"], ["--norc", "-i"], False),
    ],
)
def test_commands_are_told_from_interactive_shells(
    given: list[str], expected: list[str], is_command: bool
) -> None:
    assert shell_arguments(given) == (expected, is_command)


def test_a_script_is_run_as_a_script(tmp_path: Path) -> None:
    script = tmp_path / "x.sh"
    script.touch()
    assert shell_arguments([str(script)]) == ([str(script)], False)


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith("MARS_")}
    return subprocess.run(
        [sys.executable, "-m", "mars.cli.shell", *arguments],
        env=known | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_output_and_exit_code_are_the_commands() -> None:
    ran = shell("-c", "echo out; echo err >&2; exit 3")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\n", "err\n", 3)


def test_an_endless_command_ends_in_words() -> None:
    ran = shell("-c", "trap '' TERM; while :; do sleep 1; done", MARS_TOOLS__TIMEOUT_S="0.5")
    assert "stopped after its timeout of 0.5 s" in ran.stderr
    assert ran.returncode == 137


CORE = min(os.sched_getaffinity(0))
WHERE = "grep Cpus_allowed_list /proc/self/status"


def test_commands_run_on_the_cores_for_tools() -> None:
    ran = shell("-c", WHERE, MARS_TOOLS__CPU_LIST=str(CORE))
    assert ran.stdout.split()[-1] == str(CORE)


async def test_the_tool_server_says_on_which_cores_a_command_runs(tmp_path: Path) -> None:
    pool = make_pool(ToolsConfig(cpu_list=str(CORE)))
    async with pool, ToolServer(pool, tmp_path / "tools.sock") as server:
        ran = await asyncio.to_thread(shell, "-c", WHERE, MARS_TOOLS=str(server.path))
    assert ran.stdout.split()[-1] == str(CORE)


async def test_each_command_has_a_slot_of_its_session(tmp_path: Path) -> None:
    events: list[Event] = []
    pool = ToolPool(1, emit=events.append)
    async with pool, ToolServer(pool, tmp_path / "tools.sock") as server:
        ran = await asyncio.to_thread(
            shell,
            "-lc",
            "echo $MARS_SESSION; bash -c 'echo nested'",
            MARS_TOOLS=str(server.path),
            CODEX_SESSION_ID="s7",
            CODEX_TOOL_CALL_ID="call-1",
        )
    assert ran.stdout == "s7\nnested\n"
    (call,) = [event for event in events if isinstance(event, ToolFinished)]
    assert (call.session_id, call.tool_call_id, call.exit_code) == ("s7", "call-1", 0)
