# SPDX-License-Identifier: Apache-2.0
"""The engine as a child process: started, watched, and stopped with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
import psutil

from mars.cli import leash
from mars.cli.engine_log import reason
from mars.cli.errors import CliError

POLL_S = 0.25
STOP_GRACE_S = 15.0
"""Between SIGTERM and SIGKILL. vLLM needs 2 to 5 s to end its processes."""

_TAIL_LINES = 12


class EngineProcess:
    """vLLM's API server and whatever it starts, as one process group.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        url: Base URL the server will answer on.
        log_path: File for the server's output.
        cores: It may run on; None: all that this process may use.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        log_path: Path,
        cores: frozenset[int] | None = None,
    ) -> None:
        self.url = url
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment)
        self._cores = cores
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it in a process group of its own."""
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                leash.__file__,
                str(os.getpid()),
                ",".join(map(str, sorted(self._cores or ()))),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    async def ready(self, timeout_s: float) -> float:
        """Wait until ``/health`` answers 200; return the seconds it took.

        Raises:
            CliError: the engine died, or was not ready in time.
        """
        process = self._started()
        began = time.monotonic()
        async with aiohttp.ClientSession() as client:
            while time.monotonic() - began < timeout_s:
                if process.returncode is not None:
                    raise self.died()
                if await is_healthy(client, self.url):
                    return time.monotonic() - began
                await asyncio.sleep(POLL_S)
        raise CliError(
            f"the engine was not ready after {timeout_s:g} s; its log: {self.log_path}",
            "look there for what it waits on, or give it longer with --engine-timeout-s",
        )

    async def wait(self) -> int:
        """Wait until the server ends, by itself or otherwise."""
        return await self._started().wait()

    def died(self) -> CliError:
        """Why it ended, as far as its log says."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])
        returncode = self._started().returncode
        cause = reason(lines) if returncode and returncode > 0 else None
        return CliError(
            f"the engine ended with {_status(returncode)}{f': {cause}' if cause else ''}\n"
            f"  the end of its log {self.log_path}:{shown}",
            "mend what the log names; flags after `--` go to vLLM as they are",
        )

    async def stop(self) -> None:
        """End the whole process group: politely, then surely."""
        process = self._process
        if process is None:
            return
        group = process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        while _is_alive(group) and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), POLL_S)
            if process.returncode is not None:
                await asyncio.sleep(POLL_S / 5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        await process.wait()

    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "start() comes first"
        return self._process


async def is_healthy(client: aiohttp.ClientSession, url: str) -> bool:
    """Whether an engine answers ``/health`` with 200 within two seconds."""
    try:
        async with client.get(f"{url}/health", timeout=aiohttp.ClientTimeout(2)) as reply:
            return reply.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _is_alive(group: int) -> bool:
    """Whether a process of the group runs; the dead that nobody has reaped do not count."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            status = process.info["status"]
            if status != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                return True
    return False


def _status(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
