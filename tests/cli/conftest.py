# SPDX-License-Identifier: Apache-2.0
"""The command as a user runs it, and ways to wait for what a process does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

WAIT_S = 60.0
"""How long to wait for something that must happen; a failing test takes so long."""


@pytest.fixture
def mars(tmp_path: Path) -> Run:
    """Run ``mars ARGUMENTS`` in an empty folder; wide output, so that lines are whole."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mars", *arguments],
            cwd=tmp_path,
            env=_environment() | environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S * 2,
            check=False,
        )

    return run


class Background:
    """A `mars` that keeps running, with what it has said so far.

    Args:
        arguments: After ``mars``.
        folder: For its output.
    """

    def __init__(self, arguments: tuple[str, ...], folder: Path) -> None:
        self.out, self.err = folder / "mars.out", folder / "mars.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mars", *arguments],
                stdout=out,
                stderr=err,
                env=_environment(),
                start_new_session=True,
            )

    def says(self, text: str, timeout_s: float = WAIT_S) -> str:
        """Its standard output, once that holds ``text``."""
        wait_until(
            lambda: text in self.out.read_text() or self.process.poll() is not None, timeout_s
        )
        assert text in self.out.read_text(), self.err.read_text()
        return self.out.read_text()

    def children(self) -> list[psutil.Process]:
        """Everything it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """Make sure that nothing of it is left."""
        if self.process.poll() is None:
            started = self.children()
            self.process.kill()
            for child in started:
                with_gone(child.kill)
        self.process.wait()


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., Background]]:
    """Start ``mars ARGUMENTS`` and leave it running until the test ends."""
    running: list[Background] = []

    def start(*arguments: str) -> Background:
        running.append(Background(arguments, tmp_path))
        return running[-1]

    yield start
    for started in running:
        started.end()


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Poll; returns as soon as the condition holds, or when time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_gone(act: Callable[[], object]) -> None:
    """Do something to a process that may have ended meanwhile."""
    try:
        act()
    except psutil.NoSuchProcess:
        return


def _environment() -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith("MARS_")}
    return known | {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
