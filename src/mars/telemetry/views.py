# SPDX-License-Identifier: Apache-2.0
"""What the fold knows of sessions, turns and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """What a session is doing; ``IDLE`` is active with nobody known to work for it."""

    HELD = "held"
    QUEUE = "queue"
    PREFILL = "prefill"
    DECODE = "decode"
    TOOL_QUEUE = "tool_queue"
    TOOL = "tool"
    IDLE = "idle"
    ENDED = "ended"


class Span(NamedTuple):
    """A session was in one phase from ``start`` to ``end`` (monotonic seconds)."""

    phase: Phase
    start: float
    end: float


@dataclass(slots=True)
class TurnView:
    """One LLM request as seen so far; ``None`` where it has not happened."""

    request_id: str
    turn_index: int
    submitted_at: float
    num_prompt_tokens: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_recomputed_tokens: int = 0
    num_preemptions: int = 0
    finish_reason: str | None = None

    @property
    def phase(self) -> Phase:
        """Queue, prefill or decode."""
        if self.first_token_at is not None:
            return Phase.DECODE
        return Phase.QUEUE if self.started_at is None else Phase.PREFILL


@dataclass(slots=True)
class ToolView:
    """One tool call as seen so far."""

    tool_call_id: str
    tool_name: str
    queued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    exit_code: int | None = None
    is_timed_out: bool = False


_ORDER = (Phase.DECODE, Phase.PREFILL, Phase.QUEUE)


@dataclass(slots=True)
class SessionView:
    """One life of a session: what it does now, and what it did.

    ``turns``, ``tools`` and ``spans`` (closed ones only) fill up when the fold keeps
    history; ``phase_s`` sums the seconds by phase in any case.
    """

    session_id: str
    arrived_at: float
    generation: int = 0
    tenant: str = "default"
    parent: str | None = None
    phase: Phase = Phase.IDLE
    phase_since: float = 0.0
    held_since: float | None = None
    admitted_at: float | None = None
    held_s: float = 0.0
    ended_at: float | None = None
    end_reason: str | None = None
    num_turns: int = 0
    first_prompt_tokens: int = 0
    context_tokens: int = 0
    level: int | None = None
    retained_blocks: int = 0
    is_turn_due: bool = False
    open_turns: dict[str, TurnView] = field(default_factory=dict[str, TurnView])
    open_tools: dict[str, ToolView] = field(default_factory=dict[str, ToolView])
    turns: list[TurnView] = field(default_factory=list[TurnView])
    tools: list[ToolView] = field(default_factory=list[ToolView])
    spans: list[Span] = field(default_factory=list[Span])
    phase_s: dict[Phase, float] = field(default_factory=dict[Phase, float])

    def present_phase(self) -> Phase:
        """The phase that the open turns and tools add up to; the furthest one wins."""
        if self.ended_at is not None:
            return Phase.ENDED
        if self.open_turns:
            phases = {turn.phase for turn in self.open_turns.values()}
            return next(phase for phase in _ORDER if phase in phases)
        if self.held_since is not None:
            return Phase.HELD
        if self.is_turn_due:
            return Phase.QUEUE
        if self.open_tools:
            is_running = any(t.started_at is not None for t in self.open_tools.values())
            return Phase.TOOL if is_running else Phase.TOOL_QUEUE
        return Phase.IDLE

    def move(self, now: float, keep_span: bool) -> None:
        """Enter the present phase, closing the one before."""
        phase = self.present_phase()
        if phase is self.phase:
            return
        elapsed = max(0.0, now - self.phase_since)
        self.phase_s[self.phase] = self.phase_s.get(self.phase, 0.0) + elapsed
        if keep_span and elapsed > 0:
            self.spans.append(Span(self.phase, self.phase_since, now))
        self.phase = phase
        self.phase_since = now
