# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mars.cli import engine_process
from mars.cli.engine_process import EngineProcess
from mars.cli.errors import CliError
from tests.cli.conftest import is_gone, wait_until

FAKE = Path(__file__).with_name("fake_server.py")
READY_S = 60.0


def _engine(folder: Path, port: int, *arguments: str) -> EngineProcess:
    command = [sys.executable, *(arguments or (str(FAKE), str(port)))]
    url = f"http://127.0.0.1:{port}"
    return EngineProcess(command, dict(os.environ), url, folder / "engine.log")


def _core(engine: EngineProcess) -> psutil.Process:
    line = engine.log_path.read_text().splitlines()[0]
    return psutil.Process(int(line.removeprefix("core ")))


async def test_stop_ends_the_server_and_what_it_started(tmp_path: Path, free_port: int):
    engine = _engine(tmp_path, free_port)
    await engine.start()
    assert await engine.ready(READY_S) >= 0
    core = _core(engine)
    await engine.stop()
    assert is_gone(core)
    assert await engine.wait() == -signal.SIGTERM


async def test_a_stubborn_server_is_killed(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_process, "STOP_GRACE_S", 0.5)
    engine = _engine(tmp_path, free_port, str(FAKE), str(free_port), "stubborn")
    await engine.start()
    await engine.ready(READY_S)
    await engine.stop()
    assert await engine.wait() == -signal.SIGKILL


async def test_what_a_dead_server_leaves_is_ended(tmp_path: Path, free_port: int):
    engine = _engine(tmp_path, free_port)
    await engine.start()
    await engine.ready(READY_S)
    core = _core(engine)
    os.kill(core.ppid(), signal.SIGKILL)
    await engine.wait()
    assert not is_gone(core)
    await engine.stop()
    assert is_gone(core)


async def test_a_server_that_fails_says_why(tmp_path: Path, free_port: int):
    code = "import sys; print('first'); sys.stdout.flush(); raise ValueError('no such model')"
    engine = _engine(tmp_path, free_port, "-c", code)
    await engine.start()
    with pytest.raises(CliError) as caught:
        await engine.ready(READY_S)
    assert "exit status 1: ValueError: no such model" in caught.value.cause
    assert str(engine.log_path) in caught.value.cause
    assert "\n    first\n" in caught.value.cause


async def test_a_killed_server_is_not_blamed_on_an_old_message(tmp_path: Path, free_port: int):
    code = "import os; print('OSError: old', flush=True); os.kill(os.getpid(), 9)"
    engine = _engine(tmp_path, free_port, "-c", code)
    await engine.start()
    with pytest.raises(CliError, match=r"ended with signal SIGKILL\n"):
        await engine.ready(READY_S)


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path, free_port: int):
    engine = _engine(tmp_path, free_port, "-c", "import signal; signal.pause()")
    await engine.start()
    try:
        with pytest.raises(CliError, match="not ready after 0.5 s") as caught:
            await engine.ready(0.5)
        assert "--engine-timeout-s" in caught.value.fix
    finally:
        await engine.stop()


async def test_it_runs_on_the_cores_it_is_given(tmp_path: Path, free_port: int):
    cores = frozenset({min(os.sched_getaffinity(0))})
    command = [sys.executable, str(FAKE), str(free_port)]
    url = f"http://127.0.0.1:{free_port}"
    engine = EngineProcess(command, dict(os.environ), url, tmp_path / "engine.log", cores)
    await engine.start()
    await engine.ready(READY_S)
    assert os.sched_getaffinity(_core(engine).pid) == cores
    await engine.stop()


async def test_stop_before_start_does_nothing(tmp_path: Path, free_port: int):
    await _engine(tmp_path, free_port).stop()


def test_the_engine_ends_with_its_parent(tmp_path: Path):
    """Also when the parent had no chance to stop it."""
    code = (
        "import os, subprocess, sys\n"
        "from mars.cli import leash\n"
        "child = subprocess.Popen([sys.executable, leash.__file__, str(os.getpid()), '',\n"
        "    sys.executable, '-c', 'import signal; print(1, flush=True); signal.pause()'],\n"
        "    start_new_session=True, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    wait_until(lambda: not psutil.pid_exists(pid) or is_gone(psutil.Process(pid)))
    assert not psutil.pid_exists(pid) or is_gone(psutil.Process(pid))
