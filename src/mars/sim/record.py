# SPDX-License-Identifier: Apache-2.0
"""From the event stream to the records of a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mars.bench.result import SessionRecord, TurnRecord
from mars.core import events as ev
from mars.traces.schema import TraceSession


class Recorder:
    """Folds the events of one run into a record per session; pure, in event order.

    Args:
        sink: also receives every event.
        keeps_turns: whether records carry their turns.
    """

    def __init__(
        self, sink: Callable[[ev.Event], None] | None = None, *, keeps_turns: bool = True
    ) -> None:
        self.sessions: dict[str, SessionRecord] = {}
        self._sink = sink
        self._keeps_turns = keeps_turns
        self._open: dict[str, TurnRecord] = {}
        self._started_at: dict[str, float] = {}
        self._steps: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SessionArrived: self._arrived,
            ev.SessionAdmitted: self._admitted,
            ev.SessionResumed: self._resumed,
            ev.TurnSubmitted: self._submitted,
            ev.TurnStarted: self._started,
            ev.FirstToken: self._first_token,
            ev.TurnPreempted: self._preempted,
            ev.TurnFinished: self._finished,
            ev.ToolStarted: self._tool_started,
            ev.ToolFinished: self._tool_finished,
        }

    def expect(self, session: TraceSession, ideal_s: float) -> None:
        """A session of the trace, before it arrives."""
        self.sessions[session.session_id] = SessionRecord(
            session_id=session.session_id,
            arrival_s=session.arrival_s,
            sct_s=None,
            ideal_s=ideal_s,
            tenant=session.tenant,
        )

    def emit(self, event: ev.Event) -> None:
        """Take in the next event."""
        step = self._steps.get(type(event))
        if step is not None:
            step(event)
        if self._sink is not None:
            self._sink(event)

    def _arrived(self, event: ev.SessionArrived) -> None:
        self.sessions[event.session_id].arrival_s = event.time

    def _admitted(self, event: ev.SessionAdmitted) -> None:
        self.sessions[event.session_id].held_s = event.held_s

    def _resumed(self, event: ev.SessionResumed) -> None:
        self.sessions[event.session_id].held_s += event.waited_s

    def _submitted(self, event: ev.TurnSubmitted) -> None:
        session = self.sessions[event.session_id]
        sent_s = session.arrival_s if event.turn_index == 0 else event.time
        turn = TurnRecord(
            turn_index=event.turn_index,
            sent_s=sent_s,
            prompt_tokens=event.num_prompt_tokens,
            output_tokens=0,
        )
        self._open[event.request_id] = turn
        session.num_turns += 1
        session.prompt_tokens += event.num_prompt_tokens
        if self._keeps_turns:
            session.turns.append(turn)

    def _started(self, event: ev.TurnStarted) -> None:
        session, turn = self.sessions[event.session_id], self._open[event.request_id]
        turn.cached_tokens = event.num_cached_tokens
        session.cached_tokens += event.num_cached_tokens
        session.queue_s += event.queue_s
        self._started_at[event.request_id] = event.time

    def _first_token(self, event: ev.FirstToken) -> None:
        session, turn = self.sessions[event.session_id], self._open[event.request_id]
        started_at = self._started_at.pop(event.request_id)
        session.prefill_s += event.time - started_at
        turn.ttft_s = event.time - turn.sent_s
        turn.end_s = event.time

    def _preempted(self, event: ev.TurnPreempted) -> None:
        self.sessions[event.session_id].preemptions += 1

    def _finished(self, event: ev.TurnFinished) -> None:
        session, turn = self.sessions[event.session_id], self._open.pop(event.request_id)
        turn.output_tokens = event.num_output_tokens
        session.output_tokens += event.num_output_tokens
        session.recomputed_tokens += event.num_recomputed_tokens
        session.decode_s += event.time - (turn.end_s or event.time)
        turn.end_s = event.time

    def _tool_started(self, event: ev.ToolStarted) -> None:
        session = self.sessions[event.session_id]
        session.num_tool_calls += 1
        session.tool_wait_s += event.queued_s

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        self.sessions[event.session_id].tool_s += event.duration_s
