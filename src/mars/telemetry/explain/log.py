# SPDX-License-Identifier: Apache-2.0
"""A whole event log, indexed by what an explanation asks: who, when, and beside whom."""

from __future__ import annotations

import bisect
import difflib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mars.core import events as ev
from mars.telemetry.fold import fold_events
from mars.telemetry.views import SessionView


class UnknownSessionError(ValueError):
    """The log has no such session; the message names the nearest ones."""


@dataclass(slots=True)
class TurnFacts:
    """One turn, as the log tells it; times in seconds of the log's clock.

    ``num_cached_tokens`` is what its first step found, ``preempted`` and ``resumed`` are in
    order of time. Fields of a turn that the log does not finish keep their defaults.
    """

    request_id: str
    session_id: str
    turn_index: int
    submitted_at: float
    num_prompt_tokens: int
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_recomputed_tokens: int = 0
    finish_reason: str = ""
    preempted: list[ev.TurnPreempted] = field(default_factory=list[ev.TurnPreempted])
    resumed: list[ev.TurnResumed] = field(default_factory=list[ev.TurnResumed])


@dataclass(slots=True)
class ToolFacts:
    """One tool call, as the log tells it."""

    event: ev.ToolQueued | ev.ToolStarted
    queued_at: float
    started_at: float | None = None
    finished: ev.ToolFinished | None = None


@dataclass(slots=True)
class HoldFacts:
    """One session's stay outside the engine."""

    session_id: str
    held: ev.SessionHeld
    admitted: ev.SessionAdmitted | None = None


class RunLog:
    """The events of one run, in order of time.

    Args:
        events: as read from the log; sources come by different ways, so they are sorted.
    """

    def __init__(self, events: Iterable[ev.Event]) -> None:
        ordered = sorted(events, key=lambda event: event.time)
        fold = fold_events(ordered)
        self.views: list[SessionView] = [*fold.ended.values(), *fold.sessions.values()]
        """One life of a session each."""
        self.lives_of: dict[str, list[SessionView]] = defaultdict(list)
        for view in self.views:
            self.lives_of[view.session_id].append(view)
        self.end = fold.time
        self.num_dropped = fold.counters.events_dropped
        self.samples = list(fold.engine_samples)
        self.windows = list(fold.windows)
        self.turns: list[TurnFacts] = []
        """All turns, in order of submission."""
        self.tools: list[ToolFacts] = []
        self.holds: list[HoldFacts] = []
        self.turns_of: dict[str, list[TurnFacts]] = defaultdict(list)
        self.tools_of: dict[str, list[ToolFacts]] = defaultdict(list)
        self.events_of: dict[str, list[ev.SessionEvent]] = defaultdict(list)
        self._open_turns: dict[str, TurnFacts] = {}
        self._open_tools: dict[tuple[str, str], ToolFacts] = {}
        self._open_holds: dict[str, HoldFacts] = {}
        for event in ordered:
            if isinstance(event, ev.SessionEvent):
                self.events_of[event.session_id].append(event)
                self._take_in(event)

    def view(self, session_id: str, generation: int | None = None) -> SessionView:
        """The (last, or numbered) life of a session.

        Raises:
            UnknownSessionError: the log has none.
        """
        lives = self.lives_of.get(session_id)
        if not lives:
            raise UnknownSessionError(self._unknown(session_id))
        if generation is None:
            return max(lives, key=lambda view: view.generation)
        for view in lives:
            if view.generation == generation:
                return view
        known = ", ".join(str(view.generation) for view in lives)
        raise UnknownSessionError(
            f"session {session_id!r} has no life {generation}; it has {known}"
        )

    def sample_at(self, time: float) -> ev.EngineSampled | None:
        """The last load sample of the engine until ``time``; None before the first."""
        index = bisect.bisect_right(self.samples, time, key=lambda sample: sample.time)
        return self.samples[index - 1] if index else None

    def _unknown(self, session_id: str) -> str:
        known = list(self.lives_of)
        if not known:
            return "the log has no sessions"
        near = [name for name in known if session_id in name or name in session_id]
        near += [n for n in difflib.get_close_matches(session_id, known, 3, 0.4) if n not in near]
        shown = ", ".join((near or known)[:3])
        word = "nearest" if near else "some it has"
        return f"no session {session_id!r} among the {len(known)} of the log; {word}: {shown}"

    def _take_in(self, event: ev.SessionEvent) -> None:
        match event:
            case ev.SessionHeld():
                hold = self._open_holds[event.session_id] = HoldFacts(event.session_id, event)
                self.holds.append(hold)
            case ev.SessionAdmitted():
                if hold := self._open_holds.pop(event.session_id, None):
                    hold.admitted = event
            case ev.SessionResumed():
                if hold := self._open_holds.pop(event.session_id, None):
                    hold.admitted = ev.SessionAdmitted(
                        time=event.time,
                        session_id=event.session_id,
                        held_s=event.waited_s,
                        mode="resumed",
                        num_active=event.num_active,
                    )
            case ev.TurnSubmitted():
                turn = self._open_turns[event.request_id] = TurnFacts(
                    event.request_id,
                    event.session_id,
                    event.turn_index,
                    event.time,
                    event.num_prompt_tokens,
                )
                self.turns.append(turn)
                self.turns_of[event.session_id].append(turn)
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolFinished():
                self._take_in_tool(event)
            case _:
                self._take_in_turn(event)

    def _take_in_turn(self, event: ev.SessionEvent) -> None:
        turn = self._open_turns.get(getattr(event, "request_id", ""))
        if turn is None:
            return
        match event:
            case ev.TurnStarted():
                turn.started_at = event.time
                turn.num_cached_tokens = event.num_cached_tokens
            case ev.FirstToken():
                turn.first_token_at = event.time
            case ev.TurnPreempted():
                turn.preempted.append(event)
            case ev.TurnResumed():
                turn.resumed.append(event)
            case ev.TurnFinished():
                turn.finished_at = event.time
                turn.num_output_tokens = event.num_output_tokens
                turn.num_recomputed_tokens = event.num_recomputed_tokens
                turn.finish_reason = event.finish_reason
                del self._open_turns[event.request_id]
            case _:
                pass

    def _take_in_tool(self, event: ev.ToolQueued | ev.ToolStarted | ev.ToolFinished) -> None:
        key = (event.session_id, event.tool_call_id)
        call = self._open_tools.get(key)
        if isinstance(event, ev.ToolFinished):
            if call is not None:
                call.finished = event
                del self._open_tools[key]
            return
        if call is None:
            queued_at = event.time
            if isinstance(event, ev.ToolStarted):
                queued_at -= event.queued_s
            call = self._open_tools[key] = ToolFacts(event, queued_at)
            self.tools.append(call)
            self.tools_of[event.session_id].append(call)
        if isinstance(event, ev.ToolStarted):
            call.started_at = event.time
