# SPDX-License-Identifier: Apache-2.0
"""The tool pool: a scheduled queue in front of a bounded number of running tools."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import msgspec

from mars.core.events import Event, HostSampled, ToolFinished, ToolQueued, ToolStarted
from mars.core.model import Load, Session, ToolCall
from mars.core.policy import ToolPolicy, tool_policies
from mars.telemetry.host import HostMeter
from mars.tools.process import ToolRunner
from mars.tools.request import ToolRequest, ToolResult
from mars.tools.slots import default_slots

QUEUE_DELAY_ALPHA = 0.2
"""Weight of the newest wait in the queue delay (MARS paper: EMA, alpha 0.2)."""
EXPRESS_SHARE = 0.5
"""Calls beyond the slots, per core, that a policy lets by as surely short (chosen)."""
SAMPLE_INTERVAL_S = 1.0
_MAX_SESSIONS = 8192
_GIVEN_UP = -15


class Lease:
    """A slot held by one tool call."""

    def __init__(self, call: ToolCall) -> None:
        self.call = call
        self.result: ToolResult | None = None

    @property
    def queued_s(self) -> float:
        """How long the call waited for the slot."""
        return _queued_s(self.call)

    def finish(self, result: ToolResult) -> None:
        """Say how the call ended; the slot is given back when the lease is left."""
        self.result = result


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting:
    call: ToolCall
    session: Session
    number: int
    turn: asyncio.Future[None]


class ToolPool:
    """Runs tool calls on slots, in the order of a tool policy, and reports each.

    Args:
        slots: Tools that run at once; as many as there are cores by default. A policy may
            move it.
        policy: Tool policy, or its name.
        emit: Takes each event; called on the pool's event loop, must not block.
        runner: Starts the processes; own by default.
        clock: Monotonic seconds.
        sample_interval_s: Between two ``HostSampled``; they are emitted from ``start()`` on.
    """

    def __init__(
        self,
        slots: int | None = None,
        policy: str | ToolPolicy = "fifo",
        emit: Callable[[Event], None] | None = None,
        *,
        runner: ToolRunner | None = None,
        clock: Callable[[], float] = time.monotonic,
        sample_interval_s: float = SAMPLE_INTERVAL_S,
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.policy: ToolPolicy = (
            tool_policies.create(policy) if isinstance(policy, str) else policy
        )
        self._configured_slots = slots or default_slots()
        self._slots = self._configured_slots
        self._emit = emit or _ignore
        self._runner = runner or ToolRunner()
        self._clock = clock
        self._sample_interval_s = sample_interval_s
        self._sampler: asyncio.Task[None] | None = None
        self._meter = HostMeter()
        self._cores = self._meter.cores
        self._cpu_usage: float | None = None
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()
        self._num_running = 0
        self._queue_delay_s = 0.0
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._calls: set[asyncio.Task[ToolResult]] = set()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def slots(self) -> int:
        """How many tools may run at once, now."""
        return self._slots

    @property
    def cores(self) -> frozenset[int] | None:
        """Cores that tools may run on; None: all that this process may use."""
        return self._runner.cores

    @property
    def losses(self) -> tuple[str, ...]:
        """What this machine cannot give to tools, in words."""
        return self._runner.losses

    def start(self) -> None:
        """Begin to sample the host; needs a running event loop."""
        if self._sampler is None:
            self._sampler = asyncio.get_running_loop().create_task(self._sample())

    async def close(self) -> None:
        """Stop everything that runs or waits, and leave no process behind."""
        self._is_closed = True
        tasks = [*self._calls, *([self._sampler] if self._sampler else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._runner.close()

    async def run(self, request: ToolRequest) -> ToolResult:
        """Wait for a slot, run the call, and say how it went.

        When the caller is cancelled the call leaves the queue, or its processes are
        killed. Never raises for what the command does.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._is_closed:
            raise RuntimeError("the tool pool is closed")
        task = asyncio.ensure_future(self._run(request))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await task

    def end_session(self, session_id: str) -> None:
        """Forget a session; calls of it that still run go on."""
        if self._sessions.pop(session_id, None) is not None:
            self.policy.on_session_end(session_id, self._clock())

    def load(self) -> Load:
        """The pool's half of the load, as of now."""
        return Load(
            sampled_at=self._clock(),
            cpu_cores=max(1, round(self._cores)),
            cpu_usage=self._cpu_usage,
            cpu_pressure=self._meter.pressure(),
            tool_slots=self._slots,
            tools_running=self._num_running,
            tools_queued=len(self._queue),
            tool_queue_delay_s=self._present_delay_s(),
            memory_bytes_free=self._meter.memory_bytes_free(),
        )

    @contextlib.asynccontextmanager
    async def lease(
        self, session_id: str, tool_call_id: str, tool_name: str
    ) -> AsyncIterator[Lease]:
        """Hold a slot for a tool that runs elsewhere (in the agent, in another process).

        Entering waits for the slot; leaving ends the call with what :meth:`Lease.finish`
        was told, or as given up if it was told nothing.
        """
        call = ToolCall(tool_call_id, session_id, tool_name, self._clock())
        try:
            await self._wait_for_slot(call)
        except asyncio.CancelledError:
            self._finished(call, None)
            raise
        held = Lease(call)
        try:
            yield held
        finally:
            self._num_running -= 1
            self._finished(call, held.result)
            self._dispatch()

    async def _run(self, request: ToolRequest) -> ToolResult:
        names = (request.session_id, request.tool_call_id, request.tool_class)
        async with self.lease(*names) as held:
            result = await self._runner.run(request)
            held.finish(result)
        return msgspec.structs.replace(result, queued_s=held.queued_s)

    async def _wait_for_slot(self, call: ToolCall) -> None:
        session = self._session(call)
        self.policy.on_queue(call, session, call.queued_at)
        self._emit(
            ToolQueued(
                time=call.queued_at,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
            )
        )
        turn = asyncio.get_running_loop().create_future()
        waiting = _Waiting(call, session, next(self._numbers), turn)
        self._queue.append(waiting)
        self._dispatch()
        try:
            await turn
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            elif turn.done() and not turn.cancelled():
                self._num_running -= 1
                self._dispatch()
            raise

    def _dispatch(self) -> None:
        """Give the free slots to the calls that the policy ranks first."""
        most = self._slots + max(1, int(self._cores * EXPRESS_SHARE))
        while self._queue and self._num_running < most:
            now = self._clock()
            may_start = [
                waiting
                for waiting in self._queue
                if self._num_running < self._slots or self.policy.is_express(waiting.call, now)
            ]
            if not may_start:
                return
            first = min(
                may_start, key=lambda w: (self.policy.rank(w.call, w.session, now), w.number)
            )
            self._queue.remove(first)
            if first.turn.done():  # given up in this very moment
                continue
            self._num_running += 1
            self._started(first.call, now)
            first.turn.set_result(None)

    def _started(self, call: ToolCall, now: float) -> None:
        call.started_at = now
        queued_s = _queued_s(call)
        self._note_delay(queued_s)
        self._emit(
            ToolStarted(
                time=now,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
                queued_s=queued_s,
            )
        )

    def _finished(self, call: ToolCall, result: ToolResult | None) -> None:
        """Account for a call that ended, or (without a result) was given up."""
        now = self._clock()
        if result is not None:
            call.finished_at = now
            call.cpu_seconds, call.peak_bytes = result.cpu_seconds, result.peak_bytes
        call.exit_code = result.exit_code if result else _GIVEN_UP
        self.policy.on_finish(call, now)
        self._emit(
            ToolFinished(
                time=now,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
                duration_s=now - call.started_at if call.started_at is not None else 0.0,
                cpu_seconds=call.cpu_seconds,
                peak_bytes=call.peak_bytes,
                exit_code=call.exit_code,
                is_timed_out=result.is_timed_out if result else False,
            )
        )

    def _note_delay(self, queued_s: float) -> None:
        self._queue_delay_s += QUEUE_DELAY_ALPHA * (queued_s - self._queue_delay_s)

    def _present_delay_s(self) -> float:
        """The moving average, or what the waiting calls have waited already if that is more:
        a queue behind tools that never end must not look short."""
        if not self._queue:
            return self._queue_delay_s
        now = self._clock()
        waits_s = [now - waiting.call.queued_at for waiting in self._queue]
        return max(self._queue_delay_s, sum(waits_s) / len(waits_s))

    def _session(self, call: ToolCall) -> Session:
        session = self._sessions.get(call.session_id)
        if session is None:
            session = self._sessions[call.session_id] = Session(call.session_id, call.queued_at)
            if len(self._sessions) > _MAX_SESSIONS:
                self.end_session(next(iter(self._sessions)))
        self._sessions.move_to_end(call.session_id)
        return session

    async def _sample(self) -> None:
        while True:
            self._cpu_usage = self._meter.usage()
            if not self._queue and self._num_running < self._slots:
                self._note_delay(0.0)
            load = self.load()
            wanted = self.policy.slots(load, load.sampled_at)
            self._slots = self._configured_slots if wanted is None else max(1, wanted)
            self._dispatch()
            self._emit(
                HostSampled(
                    time=load.sampled_at,
                    cpu_cores=max(1, round(self._cores)),
                    cpu_usage=self._cpu_usage,
                    cpu_pressure=load.cpu_pressure,
                    tool_slots=self._slots,
                    tools_running=self._num_running,
                    tools_queued=len(self._queue),
                    tool_queue_delay_s=load.tool_queue_delay_s or 0.0,
                    memory_bytes_free=load.memory_bytes_free,
                )
            )
            await asyncio.sleep(self._sample_interval_s)


def _queued_s(call: ToolCall) -> float:
    return 0.0 if call.started_at is None else call.started_at - call.queued_at


def _ignore(event: Event) -> None:
    del event
