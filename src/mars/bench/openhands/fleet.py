# SPDX-License-Identifier: Apache-2.0
"""OpenHands processes, each with some of the tasks, and what became of these."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from mars.bench.agents.clients import CLIENTS, ROOT
from mars.bench.result import SessionRecord

WORKER = Path(__file__).with_name("worker.py")
"""Never imported here: it runs where OpenHands is."""
START_LEAD_S = 2.0
"""Between the word to begin and the first arrival."""
READY_S = 240.0
MAX_LINE_BYTES = 2**20


class FleetError(RuntimeError):
    """A process of OpenHands did not come up, or ended; the message names its log."""


class Fleet:
    """The processes; use :meth:`running`, then :meth:`run`.

    Args:
        plans: one per process (see :mod:`mars.bench.openhands.worker`).
        records: of all tasks, by session; filled as tasks end.
        out: folder for logs.
        environment: added to what the processes inherit.
    """

    def __init__(
        self,
        plans: Sequence[dict[str, Any]],
        records: dict[str, SessionRecord],
        out: Path,
        environment: dict[str, str],
    ) -> None:
        self.lags_s: list[float] = []
        """How much later than due each task began (real seconds)."""
        self.started_at = 0.0
        self.num_done = 0
        self._plans = plans
        self._records = records
        self._out = out
        self._environment = environment
        self._processes: list[asyncio.subprocess.Process] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Fleet]:
        """Start them and wait until all are ready; none is left afterwards.

        Raises:
            FleetError: one did not come up.
        """
        try:
            for number, plan in enumerate(self._plans):
                self._processes.append(await self._start(number, plan))
            async with asyncio.timeout(READY_S):
                for number in range(len(self._processes)):
                    await self._line(number)
            yield self
        except TimeoutError:
            raise FleetError(f"OpenHands was not ready after {READY_S:g} s: {self._out}") from None
        finally:
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def run(self, time_scale: float, limit_s: float) -> str | None:
        """Let the tasks arrive and wait for their ends; why it was cut short, if it was."""
        self.started_at = time.monotonic() + START_LEAD_S
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{self.started_at}\n".encode())
        reasons: list[str] = []
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                for number, plan in enumerate(self._plans):
                    group.create_task(self._collect(number, len(plan["tasks"]), time_scale))
        except* TimeoutError:
            reasons.append(f"stopped after {limit_s:g} s")
        except* FleetError as errors:
            reasons.append(str(errors.exceptions[0]))
        return reasons[0] if reasons else None

    async def _collect(self, number: int, num_tasks: int, time_scale: float) -> None:
        for _ in range(num_tasks):
            ended = await self._line(number)
            record = self._records[ended["session_id"]]
            record.error = ended["error"]
            if record.error is None:
                due = self.started_at + record.arrival_s * time_scale
                record.sct_s = (ended["ended"] - due) / time_scale
            self.lags_s.append(ended["lag_s"])
            self.num_done += 1

    async def _start(self, number: int, plan: dict[str, Any]) -> asyncio.subprocess.Process:
        client = CLIENTS["openhands_agent"]
        home = self._out / f"home-{number}"
        home.mkdir(parents=True, exist_ok=True)
        known = {k: v for k, v in os.environ.items() if not k.startswith("MARS_")}
        with (self._out / f"openhands-{number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(client.bin / "python"),
                str(WORKER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=home,
                env={
                    **known,
                    "HOME": str(home.resolve()),
                    "PYTHONPATH": str(ROOT / "src"),
                    **self._environment,
                },
                start_new_session=True,
                limit=MAX_LINE_BYTES,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan).encode() + b"\n")
        return process

    async def _line(self, number: int) -> dict[str, Any]:
        """The next record of a process; what else OpenHands prints is passed over."""
        stdout = self._processes[number].stdout
        assert stdout is not None
        while line := await stdout.readline():
            if line.startswith(b"{"):
                with contextlib.suppress(ValueError):
                    return json.loads(line)
        log = self._out / f"openhands-{number}.log"
        raise FleetError(f"a process of OpenHands ended too early; see {log}")
