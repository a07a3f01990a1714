# SPDX-License-Identifier: Apache-2.0
"""The host in virtual time: a tool queue with slots, and cores that running tools share.

A tool that took ``duration_s`` alone and ``cpu_s`` of CPU wants ``cpu_s / duration_s`` cores
all along. While the wishes of all running tools fit the cores, each runs as recorded; beyond
that cores are shared max-min fairly (what a fair CPU scheduler gives equal weights), and a
tool slows down by the share of its wish that it does not get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mars.core import events as ev
from mars.core.model import Load, Session, ToolCall
from mars.core.policy import ToolPolicy
from mars.sim.loop import EventLoop

PRESSURE_S = 10.0
"""Time constant of the CPU pressure, that of the kernel's ``avg10``."""
EXPRESS_SHARE = 0.5
"""Express calls that may pass full slots, per core: the tool pool's bound."""


@dataclass(slots=True)
class Running:
    """A tool in a slot; ``left_s`` counts seconds at full speed."""

    call: ToolCall
    started_at: float
    demand_cores: float
    left_s: float
    done: Callable[[ToolCall], None]
    speed: float = 1.0
    version: int = 0


@dataclass(slots=True)
class Waiting:
    """A tool call in the queue."""

    call: ToolCall
    session: Session
    duration_s: float
    done: Callable[[ToolCall], None]


@dataclass(slots=True)
class HostLoad:
    """Integrals over time, for means between two samples."""

    busy_slot_s: float = 0.0
    offered_slot_s: float = 0.0
    """Slots there were, those that the policy or an express call added included."""
    cpu_s: float = 0.0
    pressure: float = 0.0
    queue_delay_s: float = 0.0


class Host:
    """Runs tool calls on ``num_cores`` cores, at most ``num_slots`` at once.

    Args:
        events: virtual time.
        policy: order of the queue, and how many slots.
        num_cores: cores that tools may use.
        num_slots: configured slots.
        emit: receives tool events.
        load: the load of both resources, as the policy sees it.
    """

    def __init__(
        self,
        events: EventLoop,
        policy: ToolPolicy,
        *,
        num_cores: int,
        num_slots: int,
        emit: Callable[[ev.Event], None],
        load: Callable[[float], Load],
    ) -> None:
        self.policy = policy
        self.num_cores = num_cores
        self.num_slots = num_slots
        self.totals = HostLoad()
        self._events = events
        self._emit = emit
        self._load = load
        self._queue: list[Waiting] = []
        self._running: dict[str, Running] = {}
        self._demand_cores = 0.0
        self._settled_at = 0.0
        self._limit = num_slots
        self._max_express = max(1, int(num_cores * EXPRESS_SHARE))

    @property
    def num_running(self) -> int:
        """Tools in a slot."""
        return len(self._running)

    @property
    def num_queued(self) -> int:
        """Tool calls that wait for a slot."""
        return len(self._queue)

    def submit(
        self,
        call: ToolCall,
        session: Session,
        *,
        duration_s: float,
        done: Callable[[ToolCall], None],
    ) -> None:
        """A tool is asked for; ``call.cpu_seconds`` is what it will use; ``done`` follows."""
        now = self._events.now
        self._queue.append(Waiting(call, session, duration_s, done))
        self.policy.on_queue(call, session, now)
        self._emit(
            ev.ToolQueued(
                time=now,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
            )
        )
        self._fill()

    def settle(self) -> None:
        """Bring the integrals, and what is left of each tool, up to now."""
        now = self._events.now
        elapsed_s = now - self._settled_at
        if elapsed_s <= 0.0:
            return
        self._settled_at = now
        totals = self.totals
        totals.busy_slot_s += elapsed_s * len(self._running)
        totals.offered_slot_s += elapsed_s * max(self._limit, len(self._running))
        totals.cpu_s += elapsed_s * min(self._demand_cores, self.num_cores)
        is_pressed = 1.0 if self._demand_cores > self.num_cores else 0.0
        decay = math.exp(-elapsed_s / PRESSURE_S)
        totals.pressure = totals.pressure * decay + is_pressed * (1.0 - decay)
        for running in self._running.values():
            running.left_s -= elapsed_s * running.speed

    # --- slots -------------------------------------------------------------------------------
    def _fill(self) -> None:
        queue, running = self._queue, self._running
        while queue:
            now = self._events.now
            limit = self.policy.slots(self._load(now), now) or self.num_slots
            if limit != self._limit:
                self.settle()
                self._limit = limit
            if len(running) < limit:
                may_start = range(len(queue))
            elif len(running) < limit + self._max_express:
                is_express = self.policy.is_express
                may_start = [i for i, w in enumerate(queue) if is_express(w.call, now)]
            else:
                return
            if not may_start:
                return
            self._start(queue.pop(self._first(may_start, now)), now)

    def _first(self, may_start: Sequence[int], now: float) -> int:
        queue, rank = self._queue, self.policy.rank
        return min(may_start, key=lambda i: (rank(queue[i].call, queue[i].session, now), i))

    def _start(self, waiting: Waiting, now: float) -> None:
        call = waiting.call
        call.started_at = now
        self.totals.queue_delay_s = queued_s = now - call.queued_at
        self._emit(
            ev.ToolStarted(
                time=now,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
                queued_s=queued_s,
            )
        )
        self.settle()
        duration_s = max(waiting.duration_s, call.cpu_seconds / self.num_cores)
        demand = call.cpu_seconds / duration_s if duration_s > 0.0 else 0.0
        running = Running(call, now, demand, duration_s, waiting.done)
        was_full = self._demand_cores > self.num_cores
        self._running[call.tool_call_id] = running
        self._share(was_full, started=running)

    def _ended(self, running: Running, version: int) -> None:
        if version != running.version:
            return
        self.settle()
        now, call = self._events.now, running.call
        was_full = self._demand_cores > self.num_cores
        del self._running[call.tool_call_id]
        self._share(was_full)
        call.finished_at = now
        call.exit_code = 0
        self._emit(
            ev.ToolFinished(
                time=now,
                session_id=call.session_id,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
                duration_s=now - running.started_at,
                cpu_seconds=call.cpu_seconds,
                peak_bytes=call.peak_bytes,
                exit_code=0,
            )
        )
        self.policy.on_finish(call, now)
        running.done(call)
        self._fill()

    # --- cores -------------------------------------------------------------------------------
    def _share(self, was_full: bool, started: Running | None = None) -> None:
        """Set every tool's speed after one came or went."""
        # Summed anew: adding and subtracting floats would drift.
        self._demand_cores = sum(r.demand_cores for r in self._running.values())
        is_full = self._demand_cores > self.num_cores
        if not was_full and not is_full:
            if started is not None:
                self._schedule(started)
            return
        level = self._level() if is_full else math.inf
        for running in self._running.values():
            speed = min(1.0, level / running.demand_cores) if running.demand_cores else 1.0
            if speed != running.speed or running is started:
                running.speed = speed
                self._schedule(running)

    def _level(self) -> float:
        """Cores that each tool may have at most, so that all cores are given out."""
        demands = sorted(r.demand_cores for r in self._running.values())
        left = float(self.num_cores)
        for index, demand in enumerate(demands):
            share = left / (len(demands) - index)
            if demand > share:
                return share
            left -= demand
        return math.inf

    def _schedule(self, running: Running) -> None:
        running.version += 1
        end = self._events.now + max(0.0, running.left_s) / running.speed
        self._events.at(end, self._ended, running, running.version)


@dataclass(slots=True)
class Usage:
    """Mean CPU usage between samples."""

    host: Host
    _cpu_s: float = 0.0
    _sampled_at: float = 0.0
    value: float = field(default=0.0)

    def sample(self, now: float) -> float:
        """Share of the cores in use since the last sample, 0..1."""
        self.host.settle()
        elapsed_s = now - self._sampled_at
        if elapsed_s > 0.0:
            used_s = self.host.totals.cpu_s - self._cpu_s
            self.value = used_s / (elapsed_s * self.host.num_cores)
            self._cpu_s, self._sampled_at = self.host.totals.cpu_s, now
        return self.value
