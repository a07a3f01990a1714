# SPDX-License-Identifier: Apache-2.0
"""Small traces with a fixed shape: same arguments, same sessions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mars.traces.schema import TraceSession, TraceTool, TraceTurn


def session(
    session_id: str = "s0",
    arrival_s: float = 0.0,
    prompts: tuple[int, ...] = (1000,),
    output: int = 50,
    tool_s: float | None = None,
    cpu_s: float = 0.0,
    gap_s: float = 0.0,
) -> TraceSession:
    """One session whose turns extend each other, with a tool between them."""
    tools = () if tool_s is None else (TraceTool(name="run", duration_s=tool_s, cpu_s=cpu_s),)
    turns = tuple(
        TraceTurn(prompt_tokens=p, output_tokens=output, tools=tools, gap_s=gap_s) for p in prompts
    )
    return TraceSession(session_id=session_id, arrival_s=arrival_s, turns=turns)


@dataclass(frozen=True)
class Shape:
    """A random trace, by its seed."""

    seed: int
    num_sessions: int = 12
    rate: float = 1.0
    growth_tokens: int = 1500
    output_tokens: int = 120
    num_turns: int = 4
    shared: float = 0.0
    """Share of sessions with a common prefix, and of those with recorded blocks."""
    compacts: float = 0.0
    """Chance that a turn drops a part of what came before."""

    def trace(self) -> list[TraceSession]:
        """The sessions."""
        rng = random.Random(self.seed)
        sessions: list[TraceSession] = []
        now = 0.0
        for index in range(self.num_sessions):
            now += rng.expovariate(self.rate)
            sessions.append(self._session(rng, f"s{index:02d}", now))
        return sessions

    def _session(self, rng: random.Random, name: str, arrival_s: float) -> TraceSession:
        prefix = ("system", rng.randrange(16, 900)) if rng.random() < self.shared else None
        is_recorded = prefix is None and rng.random() < self.shared
        context, turns = prefix[1] if prefix else 0, list[TraceTurn]()
        for index in range(rng.randrange(1, self.num_turns + 1)):
            reused = None
            if index and rng.random() < self.compacts:
                reused = rng.randrange(context)
            prompt = (context if reused is None else reused) + rng.randrange(1, self.growth_tokens)
            prompt = max(prompt, prefix[1] + 1 if prefix else 1)
            output = rng.randrange(1, self.output_tokens)
            turns.append(
                TraceTurn(
                    prompt_tokens=prompt,
                    output_tokens=output,
                    reused_tokens=reused,
                    shared_prefix=prefix,
                    blocks=((0, prompt // 64),) if is_recorded and prompt >= 64 else None,
                    tools=tuple(_tool(rng) for _ in range(rng.randrange(3))),
                    gap_s=rng.choice([0.0, 0.1, 2.0]),
                )
            )
            context = prompt + output
        return TraceSession(session_id=name, arrival_s=arrival_s, turns=tuple(turns))


def _tool(rng: random.Random) -> TraceTool:
    duration_s = rng.expovariate(0.8)
    return TraceTool(
        name=rng.choice(["read", "test", "build"]),
        duration_s=duration_s,
        cpu_s=duration_s * rng.random() * 1.5,
    )
