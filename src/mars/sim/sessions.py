# SPDX-License-Identifier: Apache-2.0
"""The sessions of a trace as they live in virtual time: held, admitted, turn, tools, gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mars.core import events as ev
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, SessionState, ToolCall
from mars.core.pauses import Pauses
from mars.core.policy import AdmissionPolicy, BaseAdmission
from mars.core.returns import ReturnForecast
from mars.core.tenancy import in_fair_order
from mars.sim.host import Host
from mars.sim.loop import EngineModel, EventLoop
from mars.traces.content import layout
from mars.traces.schema import TraceSession

Emit = Callable[[ev.Event], None]


@dataclass(slots=True)
class Live:
    """One session of the trace under way."""

    trace: TraceSession
    session: Session
    turn_index: int = 0
    tool_index: int = 0
    waits_since: float = 0.0
    """When its next turn came; for one that is held or paused."""


class Sessions:
    """Drives the sessions of a trace through admission, engine and host.

    Args:
        events: virtual time.
        engine: where turns go.
        host: where tools go.
        admission: decides who may be active.
        load: the present load of both resources.
        emit: receives session and window events.
        ended: called with each session's id at its end, or with why it failed.
        interval_s: control interval of the admission policy.
        max_tokens: longest context that the engine takes.
    """

    def __init__(
        self,
        events: EventLoop,
        engine: EngineModel,
        host: Host,
        admission: AdmissionPolicy,
        *,
        load: Callable[[float], Load],
        emit: Emit,
        ended: Callable[[str, str | None], None],
        interval_s: float,
        max_tokens: int,
    ) -> None:
        self.active = ActiveSet()
        self.held: dict[str, HeldSession] = {}
        self.pauses = Pauses()
        self._returns = ReturnForecast()
        self._events = events
        self._engine = engine
        self._host = host
        self._admission = admission
        self._load = load
        self._emit = emit
        self._ended = ended
        self._interval_s = interval_s
        self._max_tokens = max_tokens
        self._live: dict[str, Live] = {}
        self._by_request: dict[str, Live] = {}
        self._num_to_come = 0
        self._window: float | None = None
        self._is_ticking = False
        self._moves = type(admission).on_tick is not BaseAdmission.on_tick

    def is_alive(self) -> bool:
        """Whether sessions are under way or still to come."""
        return bool(self._live) or self._num_to_come > 0

    # --- control plane -------------------------------------------------------------------
    def expect(self, trace: TraceSession) -> None:
        """A session that will arrive."""
        self._num_to_come += 1
        self._events.at(trace.arrival_s, self._arrive, trace)

    def _arrive(self, trace: TraceSession) -> None:
        self._num_to_come -= 1
        now, session_id = self._events.now, trace.session_id
        prompt_tokens = trace.turns[0].prompt_tokens
        session = Session(
            session_id,
            arrival_time=now,
            parent=trace.parent,
            state=SessionState.HELD,
            tenant=trace.tenant,
        )
        self._live[session_id] = Live(trace, session, waits_since=now)
        self.held[session_id] = HeldSession(session, now, prompt_tokens)
        self._emit(
            ev.SessionArrived(
                time=now,
                session_id=session_id,
                tenant=trace.tenant,
                parent=trace.parent,
                num_prompt_tokens=prompt_tokens,
            )
        )
        self._decide_for(session_id)

    def _decide_for(self, session_id: str) -> None:
        """A turn of a session outside the engine came."""
        self._decide()
        if session_id in self.held:
            now = self._events.now
            window = self._admission.window(self._load(now), now)
            bound = -1 if window == math.inf else int(window)
            self._emit(
                ev.SessionHeld(
                    time=now, session_id=session_id, num_held=len(self.held), window=bound
                )
            )
        self._keep_ticking()

    def _decide(self) -> None:
        if not self.held:
            return
        now = self._events.now
        held = list(self.held.values())
        waiting = in_fair_order(held, self.active)
        chosen = self._admission.admit(waiting, self.active, self._load(now), now)
        overdue = self.pauses.overdue(held, now)
        mode = str(self._admission.state().get("mode", "fcfs")) if chosen else ""
        for session_id in (*overdue, *chosen):
            if session_id not in self.held:
                continue
            if self.held[session_id].is_paused:
                self._resume(session_id, now)
            else:
                self._admit(session_id, mode, now)

    def _admit(self, session_id: str, mode: str, now: float) -> None:
        held = self.held.pop(session_id)
        session = held.session
        session.state = SessionState.ACTIVE
        session.context_tokens = held.num_prompt_tokens
        self.active.sessions[session_id] = session
        self._emit(
            ev.SessionAdmitted(
                time=now,
                session_id=session_id,
                held_s=now - held.held_since,
                mode=mode,
                num_active=len(self.active),
            )
        )
        # Later than this decision, as over HTTP: a turn submitted now would see it half done.
        self._events.at(now, self._submit, self._live[session_id])

    def _resume(self, session_id: str, now: float) -> None:
        held, live = self.held.pop(session_id), self._live[session_id]
        held.session.state = SessionState.ACTIVE
        self.active.sessions[session_id] = held.session
        self._engine.control({"op": "session_resumed", "session_id": session_id})
        self._emit(
            ev.SessionResumed(
                time=now,
                session_id=session_id,
                paused_s=self.pauses.resume(held, now),
                waited_s=now - live.waits_since if held.is_waiting else 0.0,
                num_active=len(self.active),
            )
        )
        if held.is_waiting:
            self._events.at(now, self._submit, live)

    def _pause(self, session: Session, now: float) -> None:
        self.held[session.session_id] = self.pauses.stop(session, self.active, now)
        self._engine.control({"op": "session_paused", "session_id": session.session_id})
        self._emit(
            ev.SessionPaused(
                time=now,
                session_id=session.session_id,
                context_tokens=session.context_tokens,
                num_active=len(self.active),
            )
        )

    def _keep_ticking(self) -> None:
        if not self._is_ticking and (self._moves or self.held):
            self._is_ticking = True
            self._events.at(self._events.now + self._interval_s, self._tick, priority=1)

    def _tick(self) -> None:
        self._is_ticking = False
        now = self._events.now
        if self._moves and self._live:
            load = self._load(now)
            self._admission.on_tick(self.active, load, now)
            for session in self.pauses.choose(self._admission, self.active, load, now):
                self._pause(session, now)
            self._show_window(self._admission.window(load, now), now)
        self._decide()
        if self._live:
            self._keep_ticking()

    def _show_window(self, window: float, now: float) -> None:
        if window == self._window or (self._window is None and window == math.inf):
            return
        self._window = window
        state = self._admission.state()
        self._emit(
            ev.WindowChanged(
                time=now,
                window=window,
                num_active=len(self.active),
                num_held=len(self.held),
                is_kv_pressed=bool(state.get("is_kv_pressed", False)),
                is_cpu_pressed=bool(state.get("is_cpu_pressed", False)),
                reason=str(state.get("reason", "")),
            )
        )

    # --- turns ---------------------------------------------------------------------------
    def _next_turn(self, live: Live) -> None:
        """The client sends the session's next request."""
        session_id = live.session.session_id
        live.waits_since = self._events.now
        paused = self.held.get(session_id)
        if paused is None:
            self._submit(live)
        else:
            paused.is_waiting = True
            self._decide_for(session_id)

    def _submit(self, live: Live) -> None:
        now, session, index = self._events.now, live.session, live.turn_index
        turn = live.trace.turns[index]
        needed = turn.prompt_tokens + turn.output_tokens
        if needed > self._max_tokens:
            self._end(
                live,
                f"turn {index} needs {needed} tokens; the KV pool takes no more "
                f"than {self._max_tokens}",
            )
            return
        contents = layout(live.trace)
        request_id = f"{session.session_id}/{index}"
        self._by_request[request_id] = live
        session.num_turns += 1
        session.num_open_turns += 1
        session.activity = Activity.REASONING
        session.tool = None
        self._engine.submit(
            request_id, session.session_id, contents.prompts[index], contents.replies[index], now
        )

    def finished(self, request_ids: list[str]) -> None:
        """Turns that the engine has finished; their tools follow."""
        now = self._events.now
        for request_id in request_ids:
            live = self._by_request.pop(request_id)
            session, turn = live.session, live.trace.turns[live.turn_index]
            session.context_tokens = turn.prompt_tokens + turn.output_tokens
            session.last_turn_finished_at = now
            session.num_open_turns -= 1
            session.activity = Activity.ACTING
            live.tool_index = 0
            if session.is_pausing:
                self._pause(session, now)
            self._next_tool(live)

    def _next_tool(self, live: Live) -> None:
        now, session = self._events.now, live.session
        turn = live.trace.turns[live.turn_index]
        if live.tool_index == len(turn.tools):
            self._tools_done(live, turn.gap_s)
            return
        tool = turn.tools[live.tool_index]
        call = ToolCall(
            f"{session.session_id}/{live.turn_index}/{live.tool_index}",
            session.session_id,
            tool.name,
            queued_at=now,
            cpu_seconds=tool.cpu_s,
            peak_bytes=tool.peak_bytes,
        )
        session.tool = call
        self._tell("tool_started", call, now)
        self._host.submit(
            call, session, duration_s=tool.duration_s, done=lambda done: self._tool_done(live, done)
        )

    def _tool_done(self, live: Live, call: ToolCall) -> None:
        live.tool_index += 1
        started_at, finished_at = call.started_at or call.queued_at, self._events.now
        self._returns.started(call.tool_name, started_at - call.queued_at, started_at)
        self._returns.finished(call.tool_name, finished_at - started_at)
        if live.tool_index == len(live.trace.turns[live.turn_index].tools):
            live.session.tool = None
            self._engine.control(
                {"op": "tool_finished", "session_id": call.session_id, "time": self._events.now}
            )
        self._next_tool(live)

    def _tools_done(self, live: Live, gap_s: float) -> None:
        live.turn_index += 1
        if live.turn_index == len(live.trace.turns):
            self._end(live, None)
        else:
            self._events.at(self._events.now + gap_s, self._next_turn, live)

    def _tell(self, op: str, call: ToolCall, now: float) -> None:
        self._engine.control(
            {
                "op": op,
                "session_id": call.session_id,
                "tool_call_id": call.tool_call_id,
                "tool_name": call.tool_name,
                "queued_at": now,
                "expected_return_at": self._returns.queued(call.tool_name, now),
            }
        )

    def _end(self, live: Live, error: str | None) -> None:
        now, session = self._events.now, live.session
        session.state = SessionState.ENDED
        del self._live[session.session_id]
        self.active.sessions.pop(session.session_id, None)
        self.held.pop(session.session_id, None)
        self._emit(
            ev.SessionEnded(
                time=now,
                session_id=session.session_id,
                reason="explicit" if error is None else "disconnected",
                num_turns=session.num_turns,
            )
        )
        self._ended(session.session_id, error)
        self._engine.control({"op": "session_end", "session_id": session.session_id})
        self._host.policy.on_session_end(session.session_id, now)
        self._admission.on_end(session, now)
        self._decide()
