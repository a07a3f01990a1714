# SPDX-License-Identifier: Apache-2.0
"""Tools that misbehave are stopped, bounded, measured, and told why; nothing outlives them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from mars.tools.burn import __file__ as burn_path
from mars.tools.process import ToolRunner
from mars.tools.request import ToolRequest
from tools.conftest import is_alive, limits, shell

ESCAPE = """
mkfifo {folder}/f
(setsid sh -c 'echo $$ > {folder}/f; exec sleep 1000' &)
read -r pid < {folder}/f
echo $pid
"""
"""Double fork and a new session; prints the pid of what got away once it runs."""
EAT = "import time; held = bytearray(b'x') * (256 << 20); time.sleep(1000)"


def python(code: str, **fields: object) -> ToolRequest:
    fields = {"session_id": "s1", "tool_call_id": "c1", "tool_name": "python", **fields}
    return ToolRequest(argv=(sys.executable, "-I", "-S", "-c", code), **fields)  # type: ignore[arg-type]


async def test_outputs_exit_code_stdin_and_folder_are_those_of_the_command(
    runner: ToolRunner, tmp_path: Path
) -> None:
    request = shell("cat; pwd; echo problem >&2; exit 3", stdin=b"in\n", cwd=str(tmp_path))
    result = await runner.run(request)
    assert result.exit_code == 3
    assert result.stdout == f"in\n{tmp_path}\n".encode()
    assert result.stderr == b"problem\n"
    assert result.notices == ()


async def test_session_and_call_reach_the_command_and_the_runtime_keeps_its_environment(
    runner: ToolRunner,
) -> None:
    request = shell('echo "$MARS_SESSION $MARS_TOOL_CALL $EXTRA ${PATH:+path}"', env={"EXTRA": "e"})
    assert (await runner.run(request)).stdout == b"s1 c1 e path\n"


async def test_stdin_larger_than_a_pipe_arrives_whole(runner: ToolRunner) -> None:
    result = await runner.run(shell("wc -c", stdin=b"x" * 1_000_000))
    assert result.stdout.strip() == b"1000000"


async def test_stdin_nobody_reads_does_not_hold_up_the_end(runner: ToolRunner) -> None:
    assert (await runner.run(shell("exit 0", stdin=b"x" * 1_000_000))).exit_code == 0


async def test_a_tool_that_never_ends_is_stopped_and_told_so(runner: ToolRunner) -> None:
    result = await runner.run(shell("echo begun; sleep 1000", timeout_s=0.5))
    assert result.is_timed_out
    assert result.exit_code == -15
    assert result.stdout == b"begun\n"
    assert b"timeout of 0.5 s" in result.stderr


async def test_sigterm_lets_a_tool_say_goodbye(runner: ToolRunner) -> None:
    script = "trap 'echo saved; exit 7' TERM; while :; do sleep 0.01; done"
    result = await runner.run(shell(script, timeout_s=0.5, grace_s=30.0))
    assert (result.exit_code, result.stdout) == (7, b"saved\n")
    assert result.is_timed_out


async def test_a_tool_that_ignores_sigterm_is_killed(runner: ToolRunner) -> None:
    script = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000"
    result = await runner.run(shell(script, timeout_s=0.5, grace_s=0.2))
    assert result.exit_code == -9
    assert b"timeout of 0.5 s" in result.stderr
    assert not is_alive(int(result.stdout))


async def test_a_stopped_tool_is_ended_too(runner: ToolRunner) -> None:
    result = await runner.run(shell("kill -STOP $$", timeout_s=0.5, grace_s=30.0))
    assert result.exit_code == -15


async def test_what_forks_away_ends_with_the_call(runner: ToolRunner, tmp_path: Path) -> None:
    result = await runner.run(shell(ESCAPE.format(folder=tmp_path)))
    assert result.exit_code == 0
    assert not is_alive(int(result.stdout))
    assert result.num_left_behind == 1
    assert b"left in the background were stopped" in result.stderr


async def test_what_forked_away_is_found_at_the_timeout(runner: ToolRunner, tmp_path: Path) -> None:
    script = ESCAPE.format(folder=tmp_path) + "sleep 1000"
    result = await runner.run(shell(script, timeout_s=1.0, grace_s=0.2))
    assert result.is_timed_out
    assert b"timeout of 1 s" in result.stderr
    assert not is_alive(int(result.stdout))


async def test_background_processes_stay_if_the_call_says_so(
    runner: ToolRunner, tmp_path: Path
) -> None:
    request = shell(ESCAPE.format(folder=tmp_path), keeps_background=True)
    result = await runner.run(request)
    pid = int(result.stdout)
    try:
        assert is_alive(pid)
        assert result.num_left_behind == 0
    finally:
        os.kill(pid, 9)


async def test_cancelling_the_caller_kills_the_processes(
    runner: ToolRunner, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    request = shell(f"setsid sh -c 'echo $$ > {fifo}; exec sleep 1000' & sleep 1000")
    task = asyncio.ensure_future(runner.run(request))
    pid = int(await asyncio.to_thread(fifo.read_text))
    assert is_alive(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(pid)


async def gone(pid: int) -> None:
    """Until the process is gone; a killed process takes a moment to die."""
    fd = None
    try:
        fd = os.pidfd_open(pid)
        exited = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(fd, lambda: exited.done() or exited.set_result(None))
        await asyncio.wait_for(exited, timeout=30)
    except ProcessLookupError:
        return
    finally:
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)


async def test_a_flood_of_output_is_cut_in_the_middle_and_counted(runner: ToolRunner) -> None:
    request = shell(
        "echo first; head -c 5000000 /dev/zero; echo last", limits=limits(output_bytes=1000)
    )
    result = await runner.run(request)
    assert result.stdout.startswith(b"first\n")
    assert result.stdout.endswith(b"last\n")
    assert len(result.stdout) < 1100
    assert b"[mars: 4999011 bytes of output left out here]" in result.stdout


async def test_a_flood_without_end_is_bounded_by_the_timeout(runner: ToolRunner) -> None:
    result = await runner.run(
        shell("yes", timeout_s=0.5, grace_s=0.2, limits=limits(output_bytes=64))
    )
    assert result.is_timed_out
    assert len(result.stdout) < 200
    assert b"bytes of output left out here" in result.stdout
    assert b"timeout of 0.5 s" in result.stderr


async def test_a_tool_that_eats_memory_is_told_instead_of_just_killed(runner: ToolRunner) -> None:
    request = python(EAT, timeout_s=60.0, limits=limits(memory_bytes=64 << 20))
    result = await runner.run(request)
    assert result.is_memory_exceeded
    assert not result.is_timed_out
    assert result.exit_code == -9
    assert b"may use 64 MiB" in result.stderr


async def test_a_file_too_large_is_refused_in_words(runner: ToolRunner, tmp_path: Path) -> None:
    request = shell(
        f"exec head -c 9000000 /dev/zero > {tmp_path}/f", limits=limits(file_bytes=1 << 20)
    )
    result = await runner.run(request)
    assert result.exit_code != 0
    assert (tmp_path / "f").stat().st_size <= 1 << 20
    assert b"passed the limit of 1 MiB" in result.stderr


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("/no/such/command",), 127, b"not found"),
        (("/etc/passwd",), 126, b"ermission denied"),
    ],
)
async def test_a_command_that_cannot_start_ends_as_in_a_shell(
    runner: ToolRunner, argv: tuple[str, ...], code: int, words: bytes
) -> None:
    request = ToolRequest(session_id="s1", tool_call_id="c1", tool_name="bash", argv=argv)
    result = await runner.run(request)
    assert result.exit_code == code
    assert words in result.stderr


async def test_a_folder_that_is_not_there_is_named(runner: ToolRunner) -> None:
    result = await runner.run(shell("true", cwd="/no/such/folder"))
    assert result.exit_code == 127
    assert b"/no/such/folder" in result.stderr


async def test_cpu_seconds_are_those_of_all_processes(runner: ToolRunner) -> None:
    one = f"{sys.executable} -I -S {burn_path} --cpu-s 0.2"
    result = await runner.run(shell(f"{one} & {one} & wait"))
    assert result.cpu_seconds == pytest.approx(0.4, abs=0.15)


async def test_peak_memory_counts_what_was_held(runner: ToolRunner) -> None:
    request = shell(
        f"exec {sys.executable} -I -S {burn_path} --wall-s 1 --bytes {128 << 20}",
    )
    result = await runner.run(request)
    assert 120 << 20 < result.peak_bytes < 200 << 20


async def test_a_recorded_tool_is_replayed_with_its_cpu_seconds(runner: ToolRunner) -> None:
    argv = (sys.executable, "-I", "-S", burn_path, "--cpu-s", "0.3", "--wall-s", "0.6")
    request = ToolRequest(session_id="s1", tool_call_id="c1", tool_name="test", argv=argv)
    result = await runner.run(request)
    assert result.exit_code == 0
    assert result.cpu_seconds == pytest.approx(0.3, abs=0.06)
    assert result.duration_s >= 0.6


def own_children() -> set[int]:
    """Pids of this process's children, dead ones too."""
    return {c.pid for c in psutil.Process().children()}


async def test_no_descriptor_or_zombie_is_left_after_many_calls(runner: ToolRunner) -> None:
    await runner.run(shell("true"))
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    children = own_children()
    for _ in range(20):
        await runner.run(shell("true & setsid sleep 1000 & exit 1"))
    runner.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= num_open
    assert own_children() <= children
