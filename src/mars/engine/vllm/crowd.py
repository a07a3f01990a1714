# SPDX-License-Identifier: Apache-2.0
"""Very many short sessions through vLLM's real scheduler in virtual time.

For the proof that nothing of a session stays behind: ``benchmarks/session_memory.py``.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mars.core.cost import CostModel
from mars.core.events import Event
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape

NAME = "crowd-"
"""Every session id begins so, and every request id with its session's."""


class Crowd:
    """Sessions of two turns with a tool call between; every second one ends without a word.

    Those are forgotten by the engine itself, ``idle_s`` after their last turn.

    Args:
        policy: scheduling policy.
        directory: an empty folder for the model's configuration.
        cost: duration of a step.
        rate_per_s: sessions that arrive in a (virtual) second.
        emit: receives the events.
    """

    IDLE_S = 60.0

    def __init__(
        self,
        policy: str,
        directory: Path,
        cost: CostModel,
        rate_per_s: float = 100.0,
        emit: Callable[[Event], None] | None = None,
    ) -> None:
        shape = VirtualShape(num_blocks=4000, max_num_seqs=64, is_async=True)
        mars = {"policy": policy, "retention": {"session_idle_s": self.IDLE_S}}
        self.engine = VirtualEngine(shape, cost, directory, mars, emit)
        scheduler = self.engine.scheduler
        assert isinstance(scheduler, MarsScheduler)
        self.scheduler = scheduler
        self.num_started = 0
        self.now = 0.0
        self._rate_per_s = rate_per_s
        self._rng = random.Random(0)
        self._due: list[tuple[float, int, int]] = []
        self._lengths: dict[int, int] = {}

    def run(self, num_sessions: int) -> None:
        """Let so many more sessions come and finish all their turns."""
        for index in range(num_sessions):
            arrival_s = self.now + index / self._rate_per_s
            heapq.heappush(self._due, (arrival_s, self.num_started, 0))
            self.num_started += 1
        engine = self.engine
        while self._due or engine.has_requests:
            while self._due and self._due[0][0] <= self.now:
                _, session, turn = heapq.heappop(self._due)
                self._ask(session, turn)
            step_s = engine.plan(self.now)
            if step_s is None:
                self.now = max(self.now + 0.01, self._due[0][0] if self._due else 0.0)
                continue
            self.now += step_s
            for request_id in engine.complete(self.now):
                self._finished(request_id)

    def go_quiet(self) -> None:
        """Time passes until the engine has forgotten everybody; the prefix cache is reset."""
        # Held KV is let go after two minutes; who had some is looked at a minute later.
        for seconds in (self.IDLE_S + 121.0, 61.0):
            self.now += seconds
            self.engine.plan(self.now)
        self.scheduler.reset_prefix_cache()

    def _ask(self, session: int, turn: int) -> None:
        rng, name = self._rng, f"{NAME}{session}"
        prompt = self._lengths.get(session, 0) + rng.randint(10, 100)
        reply = rng.randint(1, 3)
        self._lengths[session] = prompt + reply
        segments = [(name, 0, prompt)]
        self.engine.submit(f"{name}.{turn}", name, segments, (name, prompt, reply), self.now)

    def _finished(self, request_id: str) -> None:
        name, _, turn = request_id.rpartition(".")
        session = int(name.removeprefix(NAME))
        if turn == "0":
            heapq.heappush(self._due, (self.now + self._rng.uniform(0.1, 5.0), session, 1))
            self._tell("tool_started", session)
            return
        del self._lengths[session]
        if session % 2:
            self._tell("session_end", session)

    def _tell(self, op: str, session: int) -> None:
        message: dict[str, Any] = {"op": op, "session_id": f"{NAME}{session}"}
        if op == "tool_started":
            tool = {"tool_call_id": f"{NAME}{session}/call", "tool_name": "bash"}
            message |= tool | {"queued_at": self.now, "expected_return_at": self.now + 2.0}
        self.engine.control(message)
