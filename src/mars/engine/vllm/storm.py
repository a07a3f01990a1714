# SPDX-License-Identifier: Apache-2.0
"""Random weather for the plug-in: everything that may happen to an engine, in any order.

Drives vLLM's real scheduler in virtual time and checks the accounting as it goes; the
same seed gives the same run. Used by ``benchmarks/integrity.py`` and the tests.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from mars.core.cost import CostModel
from mars.engine.vllm.integrity import IntegrityError
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape

BLOCK = 16
PREFIXES = (("tools-a", 96), ("tools-b", 40))
"""Contents that many sessions begin with, and their lengths in tokens."""


@dataclass(slots=True)
class Agent:
    """A session as its client sees it."""

    name: str
    prefix: tuple[str, int]
    num_tokens: int
    num_asked: int = 0


class Storm:
    """One engine under random arrivals, aborts, ends, resets, pauses and tool events.

    Args:
        policy: scheduling policy.
        seed: decides the shape of the engine and all that happens.
        directory: an empty folder for the model's configuration.
        is_async: two steps in flight, as on a GPU.
        cost: duration of a step.
        check_every: steps between two checks.
    """

    def __init__(
        self,
        policy: str,
        seed: int,
        directory: Path,
        *,
        is_async: bool,
        cost: CostModel,
        check_every: int = 1,
    ) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        shape = VirtualShape(
            num_blocks=rng.choice((24, 40, 64, 100)),
            block_size=BLOCK,
            max_num_batched_tokens=rng.choice((48, 128, 512)),
            max_num_seqs=rng.choice((3, 8, 16)),
            watermark=rng.choice((0.0, 0.05)),
            is_async=is_async,
        )
        self.max_tokens = (shape.num_blocks - 1) * BLOCK - 1
        self.max_open = rng.choice((4, 12, 24))
        mars = {
            "policy": policy,
            "retention": {"max_share": rng.choice((0.3, 0.6, 1.0)), "max_hold_s": 20.0},
            "check_integrity_every": check_every,
        }
        self.counts: Counter[str] = Counter()
        self.finished: list[tuple[str, float]] = []
        self.engine = VirtualEngine(shape, cost, directory, mars, self._count)
        scheduler = self.engine.scheduler
        assert isinstance(scheduler, MarsScheduler)
        self.scheduler = scheduler
        self.now = 0.0
        self.is_raining = True
        self._agents: list[Agent] = []
        self._open: dict[str, str | None] = {}
        self._ends: list[float] = []
        self._resume_in = 0
        self._num_idle = 0
        self._num_named = 0

    @property
    def num_steps(self) -> int:
        """Engine steps so far."""
        return self.engine.num_steps

    def run(self, num_steps: int) -> None:
        """At least so many engine steps, then fair weather until nothing is left.

        Raises:
            IntegrityError: two records disagree, or the engine stands still.
        """
        while self.engine.num_steps < num_steps:
            self.turn_the_wheel()
        self.is_raining = False
        self._resume()
        while self._open or self._ends:
            self.turn_the_wheel()
        for agent in self._agents:
            self.engine.control({"op": "session_end", "session_id": agent.name})
        self.engine.plan(self.now)
        self.scheduler.check_integrity()
        self._check_empty()

    def turn_the_wheel(self) -> None:
        """Something may happen; then the engine does one thing."""
        if self.is_raining:
            self._happen()
        step_s = self.engine.plan(self.now)
        if step_s is not None:
            start = self._ends[-1] if self._ends else self.now
            self._ends.append(max(start, self.now) + step_s)
            self._num_idle = 0
        if not self._ends:
            self._idle()
        elif step_s is None or len(self._ends) > self.engine.shape.is_async:
            self.now = max(self.now, self._ends.pop(0))
            for request_id in self.engine.complete(self.now):
                self._open.pop(request_id, None)
                self.finished.append((request_id, self.now))

    def _idle(self) -> None:
        waits = bool(self._open) and not self._resume_in
        self._num_idle += 1
        if waits and self._num_idle > 1 and not self.scheduler.running:
            raise IntegrityError(f"{len(self._open)} turns wait and none is started")
        self.now += self.rng.choice((0.01, 0.5, 5.0)) if self.is_raining else 0.01

    # --- what may happen -----------------------------------------------------------------
    def _happen(self) -> None:
        rng = self.rng
        if self._resume_in:
            self._resume_in -= 1
            if not self._resume_in:
                self._resume()
        draw = rng.random()
        if draw < 0.5:
            if len(self._open) < self.max_open:
                self._arrive()
        elif draw < 0.51 and self._open:
            self._abort([rng.choice(list(self._open))])
        elif draw < 0.55 and self._agents:
            self._tell(rng.choice(self._agents))
        elif draw < 0.553:
            self._reset()
        elif draw < 0.556 and not self._resume_in:
            self._pause()
        elif draw < 0.558:
            self.now += rng.uniform(0, 60)

    def _arrive(self) -> None:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.1:
            agent = Agent(self._name("loner"), PREFIXES[0], 0)
        elif kind < 0.45 or not self._agents:
            agent = Agent(self._name("agent"), rng.choice(PREFIXES), 0)
            self._agents.append(agent)
        else:
            agent = rng.choice(self._agents)
        num_new = rng.choice((1, 15, 16, 17, rng.randint(1, self.max_tokens // 2)))
        num_reply = rng.choice((1, 2, rng.randint(1, 80), rng.randint(1, self.max_tokens // 2)))
        branch = f"{agent.name}/sub{agent.num_asked}" if rng.random() < 0.2 else agent.name
        begun = agent.num_tokens if rng.random() < 0.95 else rng.randint(0, agent.num_tokens)
        num_own = begun + num_new
        if agent.prefix[1] + num_own + num_reply > self.max_tokens:
            self._part_with(agent)
            return
        request_id = f"{agent.name}#{agent.num_asked}"
        agent.num_asked += 1
        if branch == agent.name:
            agent.num_tokens = num_own + num_reply
        session_id = None if kind < 0.1 else agent.name
        prompt = [(agent.prefix[0], 0, agent.prefix[1]), (branch, 0, num_own)]
        reply = (branch, num_own, num_reply)
        self.engine.submit(request_id, session_id, prompt, reply, self.now)  # type: ignore[arg-type]
        self._open[request_id] = session_id

    def _part_with(self, agent: Agent) -> None:
        if agent in self._agents:
            self._agents.remove(agent)
        self.counts["ended"] += 1
        self.engine.control({"op": "session_end", "session_id": agent.name})

    def _abort(self, request_ids: Iterable[str]) -> None:
        for request_id in list(request_ids):
            self.counts["aborted"] += 1
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            self._open.pop(request_id, None)
        self.scheduler.check_integrity()

    def _tell(self, agent: Agent) -> None:
        match self.rng.randrange(4):
            case 0:
                self._part_with(agent)
            case 1:
                self.engine.control({"op": "tool_finished", "session_id": agent.name, "time": 0.0})
            case _:
                self.counts["tools"] += 1
                message: dict[str, Any] = {
                    "op": "tool_started",
                    "session_id": agent.name,
                    "tool_call_id": self._name("call"),
                    "tool_name": self.rng.choice(("bash", "read")),
                    "queued_at": self.now,
                    "expected_return_at": self.now + self.rng.uniform(0, 30),
                }
                self.engine.control(message)

    def _reset(self) -> None:
        self.counts["resets"] += 1
        self.scheduler.reset_prefix_cache(reset_running_requests=self.rng.random() < 0.5)
        self.scheduler.check_integrity()

    def _pause(self) -> None:
        self.counts["pauses"] += 1
        self._resume_in = self.rng.randint(1, 30)
        if self.rng.random() < 0.1:
            self._abort(self._open)
        state = self.rng.choice((PauseState.PAUSED_ALL, PauseState.PAUSED_NEW))
        self.scheduler.set_pause_state(state)

    def _resume(self) -> None:
        self._resume_in = 0
        self.scheduler.set_pause_state(PauseState.UNPAUSED)

    def _name(self, kind: str) -> str:
        self._num_named += 1
        return f"{kind}{self._num_named}"

    def _count(self, event: Any) -> None:
        self.counts[event.kind] += 1

    def _check_empty(self) -> None:
        load = self.scheduler._current_load(self.now)  # noqa: SLF001 -- its own package
        if load.kv_blocks_free != load.kv_blocks_total or load.kv_blocks_retained:
            raise IntegrityError(f"all sessions ended, but not all memory is free: {load}")
        kinds = self.counts
        if kinds["turn_submitted"] != kinds["turn_finished"]:
            raise IntegrityError(f"turns that came and went differ: {dict(kinds)}")
        if kinds["kv_retained"] != kinds["kv_released"]:
            raise IntegrityError(f"what was retained and released differs: {dict(kinds)}")
