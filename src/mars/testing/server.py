# SPDX-License-Identifier: Apache-2.0
"""vLLM's API server as a child process, for tests and for the demo."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_S = 0.2


class ServerFailedError(RuntimeError):
    """The server ended or did not become ready; the message has the end of its log."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class ApiServer:
    """``python -m vllm.entrypoints.openai.api_server`` in a process group of its own.

    Use as a context manager, or call :meth:`start` and :meth:`stop`.

    Args:
        arguments: command line; must contain ``--port``.
        environment: whole environment of the process.
        log_path: where stdout and stderr go.
        module: what to run; anything that answers ``/health`` will do.
        ready_s: how long it may take to answer ``/health`` (it imports for half a minute).
        stop_s: how long it may take to end before it is killed.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        module: str = "vllm.entrypoints.openai.api_server",
        ready_s: float = 240.0,
        stop_s: float = 20.0,
    ) -> None:
        self.arguments = list(arguments)
        self.environment = dict(environment)
        self.log_path = log_path
        self.module = module
        self.ready_s = ready_s
        self.stop_s = stop_s
        self.host = self._argument("--host", "127.0.0.1")
        self.port = int(self._argument("--port", "8000"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL, without ``/v1``."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id, also the id of the process group.

        Raises:
            ServerFailedError: it was not started.
        """
        if self._process is None:
            raise ServerFailedError("the API server was not started")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; does not wait."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until ``/health`` answers 200.

        Raises:
            ServerFailedError: the process ended, or ``ready_s`` passed.
        """
        deadline = time.monotonic() + self.ready_s
        while not self.is_healthy():
            code = self._process.poll() if self._process else None
            if code is not None:
                raise ServerFailedError(f"the API server ended with code {code}{self._tail()}")
            if time.monotonic() > deadline:
                raise ServerFailedError(
                    f"the API server was not ready after {self.ready_s:g} s{self._tail()}"
                )
            time.sleep(POLL_S)

    def is_healthy(self) -> bool:
        """Ask ``/health`` once."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End the process and all it started; does nothing when it has ended."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(self.stop_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # The engine core is a child of its own and outlives a killed server.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._process = None

    def _argument(self, name: str, default: str) -> str:
        if name not in self.arguments:
            return default
        return self.arguments[self.arguments.index(name) + 1]

    def _tail(self, num_lines: int = 30) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-num_lines:]
        return f"; end of {self.log_path}:\n" + "\n".join(lines)
