# SPDX-License-Identifier: Apache-2.0
"""Virtual time: a heap of events, and an engine that runs its steps between them."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mars.core.model import Load

POLL_S = 0.001
"""vLLM looks again after 1 ms when it has requests but could schedule none."""
STUCK_S = 3600.0
"""Nothing planned for so long with no event to come: nothing ever will be."""


class StuckError(RuntimeError):
    """The engine has turns that it will never serve."""


class EngineModel(Protocol):
    """An engine in virtual time: the simulated one, or vLLM's own scheduler."""

    @property
    def has_requests(self) -> bool:
        """Whether any turn is in the engine."""
        ...

    def submit(
        self,
        request_id: str,
        session_id: str,
        prompt: Sequence[tuple[str, int, int]],
        reply: tuple[str, int, int],
        now: float,
    ) -> None:
        """A turn arrives."""
        ...

    def plan(self, now: float) -> float | None:
        """Plan one step; its duration (s), or None when nothing can be scheduled."""
        ...

    def complete(self, now: float) -> list[str]:
        """Take the result of the oldest planned step; ids of the turns that finished."""
        ...

    def leap(self, now: float, end: float, until: float) -> tuple[float, float]:
        """Run steps from ``now``, the one in flight ending at ``end``, as long as nothing
        but time and counters changes and ``until`` is not reached; the new (now, end)."""
        ...

    def control(self, message: dict[str, Any]) -> None:
        """A message of the control plane, as over the wire."""
        ...

    def num_computed_tokens(self, session_id: str) -> int:
        """Tokens computed for a session so far, repeats included."""
        ...

    def load(self, now: float) -> Load:
        """The engine's side of a load sample."""
        ...


class EventLoop:
    """Callbacks at points of virtual time, in the order (time, priority, sequence)."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(
        self, time: float, action: Callable[..., None], *arguments: Any, priority: int = 0
    ) -> None:
        """Call ``action`` at ``time``; of equal times the smaller priority goes first."""
        self._sequence += 1
        heapq.heappush(self._heap, (time, priority, self._sequence, action, arguments))

    @property
    def next_time(self) -> float:
        """Time of the next event; infinity when there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run_due(self, now: float) -> None:
        """Run every event up to and including ``now``, those they add included."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            time, _, _, action, arguments = heapq.heappop(heap)
            self.now = time
            action(*arguments)
        self.now = now


class Driver:
    """Runs an engine and the events around it until both have nothing left.

    ``depth`` planned steps may be out at once: 1 as vLLM without async scheduling, 2 with.
    An engine may run a stretch of steps in one call (``leap``) if none of them finishes a
    turn and no event falls into it; the result must be the same as step by step.

    Args:
        events: everything that is not the engine.
        engine: the engine model.
        finished: called with the ids of the turns that a step finished.
        depth: steps in flight.
    """

    def __init__(
        self,
        events: EventLoop,
        engine: EngineModel,
        finished: Callable[[list[str]], None],
        depth: int = 1,
    ) -> None:
        self.events = events
        self.engine = engine
        self.busy_s = 0.0
        self._finished = finished
        self._depth = depth
        self._ends: deque[float] = deque()
        self._device_free_at = 0.0

    def run(self) -> None:
        """Run to the end.

        Raises:
            StuckError: turns are left that the engine will never serve.
        """
        events, engine, ends = self.events, self.engine, self._ends
        now = polled_since = 0.0
        while True:
            events.run_due(now)
            if engine.has_requests and len(ends) < self._depth:
                if len(ends) == self._depth - 1 and (later := self._leap(now)) > now:
                    now = polled_since = later
                    continue
                if self._plan(now):
                    polled_since = now
                    continue
                if not ends:
                    now = self._poll(now, polled_since)
                    continue
            if ends:
                now = ends.popleft()
                events.run_due(now)
                done = engine.complete(now)
                if done:
                    self._finished(done)
            elif events.next_time < math.inf:
                now = polled_since = events.next_time
            else:
                return

    def _leap(self, now: float) -> float:
        """Run what steps the engine can run at once; the time after them."""
        ends = self._ends
        end = ends[0] if ends else now
        now, new_end = self.engine.leap(now, end, self.events.next_time)
        if new_end != end:
            self.busy_s += new_end - end
            self._device_free_at = new_end
            if ends:
                ends[0] = new_end
        return now

    def _plan(self, now: float) -> bool:
        step_s = self.engine.plan(now)
        if step_s is None:
            return False
        self._device_free_at = max(self._device_free_at, now) + step_s
        self.busy_s += step_s
        self._ends.append(self._device_free_at)
        return True

    def _poll(self, now: float, since: float) -> float:
        if self.events.next_time == math.inf and now - since > STUCK_S:
            raise StuckError(
                f"the engine served nothing from {since:.3f} s to {now:.3f} s of virtual time "
                "although turns wait; the policy closes the gate for good"
            )
        # Ever longer looks, within 1% of the wait: hours of nothing cost a thousand looks.
        step_s = max(POLL_S, 0.01 * (now - since))
        return min(max(self.events.next_time, now), now + step_s)
