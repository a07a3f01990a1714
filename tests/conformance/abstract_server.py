# SPDX-License-Identifier: Apache-2.0
"""A server reduced to what order needs: slots, a token budget a step, and sessions.

Memory is endless here, so only the order of service decides who waits.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from mars.core.coscheduler import CoScheduler
from mars.core.model import Load, Turn
from mars.core.policy import SchedulingPolicy

STEP_BASE_S = 0.05
STEP_TOKEN_S = 1.0e-4
BUDGET_TOKENS = 8192


@dataclass
class Agent:
    """One session to run: its turns are (new prompt tokens, output tokens)."""

    session_id: str
    arrival_s: float
    turns: list[tuple[int, int]]
    tool_s: float = 0.1
    next_turn: int = 0
    context: int = 0


@dataclass
class AbstractServer:
    """Runs agents to the end (or to a time) and records how long each turn waited."""

    policy: SchedulingPolicy
    num_slots: int = 4
    now: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    overtakings: list[tuple[Turn, Turn, float]] = field(default_factory=list)
    """Who started, who had come before and went on waiting, and the latter's service so far (s)."""

    def __post_init__(self) -> None:
        self.co = CoScheduler(
            self.policy, num_blocks=100_000, block_size=16, emit=lambda event: None
        )
        self.waiting: list[Turn] = []
        self.running: list[tuple[Turn, int]] = []
        self.owner: dict[str, Agent] = {}

    def run(self, agents: list[Agent], until_s: float, until_done: str = "") -> None:
        """Serve until ``until_s``, until that session or until everybody is done."""
        due = [(a.arrival_s, a.session_id, a) for a in agents]
        heapq.heapify(due)
        while self.now < until_s and (due or self.waiting or self.running):
            if until_done in self.finished:
                return
            while due and due[0][0] <= self.now:
                self._submit(heapq.heappop(due)[2])
            if not self.waiting and not self.running:
                self.now = due[0][0]
                continue
            for agent in self._step():
                heapq.heappush(due, (self.now + agent.tool_s, agent.session_id, agent))

    def _submit(self, agent: Agent) -> None:
        prompt = agent.context + agent.turns[agent.next_turn][0]
        request_id = f"{agent.session_id}/{agent.next_turn}"
        self.owner[request_id] = agent
        self.waiting.append(self.co.submit(request_id, agent.session_id, prompt, self.now))

    def _step(self) -> list[Agent]:
        self.waiting = self.co.order(self.waiting, self.now)
        while self.waiting and len(self.running) < self.num_slots:
            turn = self.waiting.pop(0)
            self.overtakings += [
                (turn, w, w.session.attained_service_s)
                for w in self.waiting
                if w.arrival_time < turn.arrival_time
            ]
            agent = self.owner[turn.request_id]
            self.co.started(turn, min(agent.context, turn.num_prompt_tokens - 1), 0, self.now)
            wait_s = self.now - turn.arrival_time
            self.waits.setdefault(agent.session_id, []).append(wait_s)
            self.running.append((turn, agent.turns[agent.next_turn][1]))
        budget, served = BUDGET_TOKENS, []
        for turn in self.co.order([t for t, _ in self.running], self.now):
            quantum = self.policy.prefill_quantum(turn, self.now) or budget
            num_tokens = min(max(1, turn.num_uncached_tokens), quantum, budget)
            if num_tokens:
                served.append((turn, num_tokens))
                budget -= num_tokens
        self.co.served(served, self.now)
        self.now += STEP_BASE_S + STEP_TOKEN_S * (BUDGET_TOKENS - budget)
        return self._sampled(served)

    def _sampled(self, served: list[tuple[Turn, int]]) -> list[Agent]:
        goals = {turn.request_id: goal for turn, goal in self.running}
        back: list[Agent] = []
        for turn, _ in served:
            if turn.num_computed_tokens < turn.num_tokens:
                continue
            turn.num_output_tokens += 1
            if turn.num_output_tokens >= goals[turn.request_id]:
                back += self._finish(turn)
        self.running = [(t, g) for t, g in self.running if t.request_id in self.co.turns]
        return back

    def _finish(self, turn: Turn) -> list[Agent]:
        agent = self.owner.pop(turn.request_id)
        load = Load(self.now, kv_blocks_total=100_000, kv_blocks_free=50_000)
        blocks = turn.num_tokens // 16
        self.co.finished(turn, load, self.now, reason="stop", num_cached_blocks=blocks)
        agent.context = turn.num_tokens
        agent.next_turn += 1
        if agent.next_turn < len(agent.turns):
            return [agent]
        self.co.end_session(agent.session_id)
        self.finished.add(agent.session_id)
        return []
