# SPDX-License-Identifier: Apache-2.0
"""`mars exec`: the command is the caller's own, and the gateway hears of it, or not."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.conftest import is_alive
from tools.test_process import ESCAPE

GUARD_S = 60


def mars_exec(
    *arguments: str, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "mars", "exec", *arguments],
        input=stdin,
        capture_output=True,
        timeout=GUARD_S,
        env={**os.environ, **env},
        check=False,
    )


class Gateway(http.server.ThreadingHTTPServer):
    """Takes posted events, as the gateway does."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Recorder)
        self.status = status
        self.events: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Recorder(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/mars/v1/events":
            self.server.events += json.loads(body)
            self.server.keys.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_stdin_outputs_and_exit_code_are_the_commands() -> None:
    ran = mars_exec("--", "sh", "-c", "cat; echo problem >&2; exit 4", stdin=b"in\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (4, b"in\n", b"problem\n")


def test_output_is_passed_on_while_the_command_runs() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mars", "exec", "--", "sh", "-c", "echo begun; read -r x; echo $x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stdout.readline() == b"go\n"


def test_the_gateway_hears_of_start_and_end(gateway: Gateway) -> None:
    ran = mars_exec(
        *("--session", "s7", "--tool", "bash", "--", "sh", "-c", "cd / && ls >/dev/null; exit 3"),
        MARS_GATEWAY=gateway.url,
        MARS_API_KEY="secret",
    )
    assert ran.returncode == 3
    assert ran.stderr == b""
    kinds = [event["kind"] for event in gateway.events]
    assert kinds == ["tool_queued", "tool_started", "tool_finished"]
    assert {event["session_id"] for event in gateway.events} == {"s7"}
    assert {event["source"] for event in gateway.events} == {"tools"}
    assert gateway.events[2]["exit_code"] == 3
    assert gateway.events[2]["tool_name"] == "bash:exit"
    assert gateway.keys == ["Bearer secret"] * 2


def test_a_gateway_that_is_away_is_a_warning_and_nothing_more() -> None:
    ran = mars_exec("--", "echo", "ok", MARS_GATEWAY="http://127.0.0.1:9")
    assert (ran.returncode, ran.stdout) == (0, b"ok\n")
    assert ran.stderr.count(b"mars: warning: the gateway at 127.0.0.1:9") == 1


def test_a_gateway_that_refuses_is_named_with_its_answer(gateway: Gateway) -> None:
    gateway.status = 403
    ran = mars_exec("--", "true", MARS_GATEWAY=gateway.url)
    assert ran.returncode == 0
    assert b"it answered 403" in ran.stderr


def test_the_session_comes_from_the_environment(gateway: Gateway) -> None:
    mars_exec("--", "true", MARS_GATEWAY=gateway.url, MARS_SESSION="from-env")
    assert {event["session_id"] for event in gateway.events} == {"from-env"}


def test_a_timeout_ends_everything(tmp_path: Path) -> None:
    script = ESCAPE.format(folder=tmp_path) + "trap '' TERM; sleep 1000; sleep 1000"
    ran = mars_exec("--timeout-s", "1", "--", "sh", "-c", script)
    assert ran.returncode == 128 + signal.SIGKILL
    assert b"timeout of 1 s" in ran.stderr
    assert not is_alive(int(ran.stdout))


def test_background_processes_end_with_the_command_unless_kept(tmp_path: Path) -> None:
    script = ESCAPE.format(folder=tmp_path) + "exec >/dev/null 2>&1"
    script = script.replace("exec sleep 1000", "exec sleep 1000 >/dev/null 2>&1")
    ended = mars_exec("--", "sh", "-c", script)
    assert not is_alive(int(ended.stdout))
    (tmp_path / "f").unlink()
    kept = mars_exec("--keep-background", "--", "sh", "-c", script)
    pid = int(kept.stdout)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_memory_limit_ends_the_command_in_words() -> None:
    code = "held = bytearray(b'x') * (256 << 20); import time; time.sleep(1000)"
    ran = mars_exec("--memory-mb", "64", "--", sys.executable, "-I", "-S", "-c", code)
    assert ran.returncode == 128 + signal.SIGKILL
    assert b"it may use 64 MiB" in ran.stderr


def test_sigterm_reaches_the_command() -> None:
    script = "trap 'echo bye; exit 5' TERM; echo begun; while :; do sleep 0.01; done"
    with subprocess.Popen(
        [sys.executable, "-m", "mars", "exec", "--", "sh", "-c", script], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.terminate()
        assert process.stdout.read() == b"bye\n"
        assert process.wait(GUARD_S) == 5


def test_a_command_that_is_not_there_is_named() -> None:
    ran = mars_exec("--", "no-such-command")
    assert ran.returncode == 127
    assert b"'no-such-command': No such file" in ran.stderr


def test_no_command_is_an_error_of_use() -> None:
    ran = mars_exec()
    assert ran.returncode != 0
    assert b"mars exec -- pytest" in ran.stderr
