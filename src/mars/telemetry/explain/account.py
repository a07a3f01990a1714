# SPDX-License-Identifier: Apache-2.0
"""Where one session's time went: stretches that follow one another without a gap."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mars.core import events as ev
from mars.telemetry.explain.log import RunLog, ToolFacts, TurnFacts
from mars.telemetry.views import Phase, SessionView, Span


class Cause(StrEnum):
    """What a stretch of time was spent on."""

    HELD = "held outside the engine"
    QUEUE = "waiting for a first step"
    PREEMPTED = "waiting again after preemption"
    RECOMPUTE = "repeated prefill"
    PREFILL = "new prefill"
    DECODE = "decode"
    TOOL_QUEUE = "waiting for a tool slot"
    TOOL = "tool"
    GAP = "client"


_CAUSE_OF = {
    Phase.HELD: Cause.HELD,
    Phase.QUEUE: Cause.QUEUE,
    Phase.PREFILL: Cause.PREFILL,
    Phase.DECODE: Cause.DECODE,
    Phase.TOOL_QUEUE: Cause.TOOL_QUEUE,
    Phase.TOOL: Cause.TOOL,
    Phase.IDLE: Cause.GAP,
}


@dataclass(slots=True, frozen=True)
class Stretch:
    """A session's time from ``start`` to ``end`` (s) and its cause; ``turn`` is a position
    in :attr:`Life.turns`: the turn it was spent on, or whose tools and gap it was."""

    cause: Cause
    start: float
    end: float
    turn: int

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end - self.start


class Life:
    """One life of a session: its turns, tools, decisions, and its time in stretches.

    Args:
        log: the whole run.
        view: the life.
    """

    def __init__(self, log: RunLog, view: SessionView) -> None:
        self.log = log
        self.view = view
        self.start = view.arrived_at
        spans = _spans(view, log.end)
        self.idle_tail_s = _idle_tail_s(view, spans)
        """Left out: idle until the gateway gave the session up, or until the log ends."""
        self.end = (spans[-1].end if spans else self.start) - self.idle_tail_s
        # Releases and evictions may follow the end of a life, but not the next one's begin.
        until = _next_life(log, view)
        self.events = [e for e in log.events_of[view.session_id] if self.start <= e.time < until]
        self.turns: list[TurnFacts] = [
            turn
            for turn in log.turns_of[view.session_id]
            if self.start <= turn.submitted_at < until
        ]
        self.tools: list[ToolFacts] = [
            call for call in log.tools_of[view.session_id] if self.start <= call.queued_at < until
        ]
        self.stretches = list(self._stretches(spans))

    @property
    def completion_s(self) -> float:
        """Arrival to end, seconds; the stretches sum to it."""
        return self.end - self.start

    @property
    def is_complete(self) -> bool:
        """Whether the log sees the end of it."""
        return self.view.ended_at is not None

    def seconds(self) -> dict[Cause, float]:
        """Seconds by cause, in the order of causes; those of no time are left out."""
        sums = dict.fromkeys(Cause, 0.0)
        for stretch in self.stretches:
            sums[stretch.cause] += stretch.duration_s
        return {cause: spent_s for cause, spent_s in sums.items() if spent_s > 0.0}

    def decisions(self, *kinds: type[ev.SessionEvent]) -> list[ev.SessionEvent]:
        """Events of these kinds, in order of time."""
        return [event for event in self.events if isinstance(event, kinds)]

    def _stretches(self, spans: Iterable[Span]) -> Iterator[Stretch]:
        starts = [turn.submitted_at for turn in self.turns]
        for phase, start, span_end in spans:
            end = min(span_end, self.end)
            if end <= start:
                continue
            turn = max(0, bisect.bisect_right(starts, start) - 1)
            cause = _CAUSE_OF[phase]
            if not self.turns or phase not in (Phase.PREFILL, Phase.DECODE):
                yield Stretch(cause, start, end, turn)
                continue
            for is_waiting, a, b in _cut(start, end, waits(self.turns[turn])):
                if is_waiting:
                    yield Stretch(Cause.PREEMPTED, a, b, turn)
                elif phase is Phase.PREFILL:
                    yield from self._prefill(a, b, turn)
                else:
                    yield Stretch(cause, a, b, turn)

    def _prefill(self, start: float, end: float, turn: int) -> Iterator[Stretch]:
        """What was computed again comes first: it is the head of the prompt."""
        at = start + repeated_share(self.turns[turn]) * (end - start)
        if at > start:
            yield Stretch(Cause.RECOMPUTE, start, at, turn)
        if end > at:
            yield Stretch(Cause.PREFILL, at, end, turn)


def waits(turn: TurnFacts) -> list[tuple[float, float]]:
    """From each preemption to the resumption after it, where the log has both."""
    times = [resumed.time for resumed in turn.resumed]
    out: list[tuple[float, float]] = []
    for lost in turn.preempted:
        index = bisect.bisect_left(times, lost.time)
        if index < len(times):
            out.append((lost.time, times[index]))
    return out


def first_recomputed(turn: TurnFacts) -> int:
    """Tokens its first step found lost, without those that its own preemptions cost."""
    again = sum(resumed.num_recomputed_tokens for resumed in turn.resumed)
    return max(0, turn.num_recomputed_tokens - again)


def repeated_share(turn: TurnFacts) -> float:
    """Recomputed over all tokens prefilled until the first output token, 0..1."""
    again = sum(
        resumed.num_recomputed_tokens
        for resumed in turn.resumed
        if turn.first_token_at is None or resumed.time < turn.first_token_at
    )
    lost = first_recomputed(turn)
    total = turn.num_prompt_tokens - turn.num_cached_tokens + again
    return min(1.0, (lost + again) / total) if total > 0 else 0.0


def _spans(view: SessionView, log_end: float) -> list[Span]:
    spans = list(view.spans)
    if view.ended_at is None and log_end > view.phase_since:
        spans.append(Span(view.phase, view.phase_since, log_end))
    return spans


def _idle_tail_s(view: SessionView, spans: list[Span]) -> float:
    is_given_up = view.ended_at is None or view.end_reason == "idle"
    if is_given_up and spans and spans[-1].phase is Phase.IDLE:
        return spans[-1].end - spans[-1].start
    return 0.0


def _next_life(log: RunLog, view: SessionView) -> float:
    later = (
        other.arrived_at
        for other in log.lives_of[view.session_id]
        if other.arrived_at > view.arrived_at
    )
    return min(later, default=float("inf"))


def _cut(
    start: float, end: float, holes: Iterable[tuple[float, float]]
) -> Iterator[tuple[bool, float, float]]:
    """(is in a hole, from, to) over start to end; holes ascend and do not overlap."""
    at = start
    for hole_start, hole_end in holes:
        low, high = max(at, hole_start), min(end, hole_end)
        if high <= low:
            continue
        if low > at:
            yield False, at, low
        yield True, low, high
        at = high
    if end > at:
        yield False, at, end
