# SPDX-License-Identifier: Apache-2.0
"""Turns as the gateway sees them: whose they are, when they began, answered and ended.

Where the engine's plug-in reports turns itself (tokens, cache hits), the gateway keeps
only its own books; in front of a stock vLLM it emits the turn events from what passes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus

from mars.core import events as ev
from mars.core.model import Session, ToolCall
from mars.gateway.admission import Admission, Beat
from mars.gateway.echo import EchoIndex
from mars.gateway.hub import Hub
from mars.gateway.identity import Identity, Peek, identify, max_output_tokens, prompt_tokens
from mars.gateway.load import LoadBoard
from mars.gateway.replies import CalledTool, ReplyReader
from mars.gateway.toolwatch import ToolWatch

TAIL_BYTES = 4096
"""End of a reply kept to read its usage from."""
_USAGE = {
    "prompt": re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)'),
    "output": re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)'),
    "cached": re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d+)'),
}


class Turns:
    """Opens turns: finds the session, waits for its admission, counts.

    Args:
        admission: holds and admits sessions.
        hub: receives events.
        board: told how many turns are open.
        clock: monotonic seconds.
    """

    def __init__(
        self, admission: Admission, hub: Hub, board: LoadBoard, clock: Callable[[], float]
    ) -> None:
        self.admission = admission
        self.hub = hub
        self.clock = clock
        self.num_open = 0
        self.echo = EchoIndex()
        self.tools = ToolWatch(hub.emit, clock)
        self._board = board

    async def begin(
        self,
        headers: Mapping[str, str],
        body: bytes,
        looked_at: Peek,
        path_id: str | None,
        beat: Beat | None = None,
    ) -> TurnWatch:
        """Return when the turn may go to the engine.

        Raises:
            ApiError: a bad session id, or the session cannot be admitted now.
        """
        who = identify(headers, looked_at, path_id)
        is_named = who is not None
        if who is None:
            echoed = self.echo.find(looked_at)
            who = (
                Identity(echoed, "echo") if echoed else Identity(f"anon-{uuid.uuid4().hex}", "none")
            )
        num_prompt_tokens = prompt_tokens(looked_at)
        session = await self.admission.enter(who, num_prompt_tokens, beat)
        self.tools.requested(session.session_id, body)
        turn = TurnWatch(self, session, num_prompt_tokens, is_named=is_named)
        turn.is_last = who.is_final
        self.admission.begin_turn(session)
        self._count(+1)
        turn.submitted(max_output_tokens(looked_at))
        return turn

    def closed(self) -> None:
        """One turn less is open."""
        self._count(-1)

    def _count(self, change: int) -> None:
        self.num_open += change
        self._board.turns_open(self.num_open, self.clock())

    def apply(self, event: ev.Event, source: str) -> None:
        """Learn from the stream what a session's context and tools are."""
        self.tools.apply(event, source)
        if not isinstance(event, ev.SessionEvent):
            return
        session = self.admission.active.sessions.get(event.session_id)
        if session is None:
            return
        if isinstance(event, ev.TurnFinished):
            session.context_tokens = event.num_prompt_tokens + event.num_output_tokens
            session.num_computed_tokens += session.context_tokens - event.num_cached_tokens
        elif isinstance(event, ev.ToolQueued | ev.ToolStarted | ev.ToolFinished):
            session.tool = self._tool_of(session)

    def _tool_of(self, session: Session) -> ToolCall | None:
        """The latest of the session's tool calls that are not finished."""
        view = self.hub.fold.sessions.get(session.session_id)
        if view is None or not view.open_tools:
            return None
        call = next(reversed(view.open_tools.values()))
        return ToolCall(
            call.tool_call_id, session.session_id, call.tool_name, call.queued_at, call.started_at
        )


class TurnWatch:
    """One turn on its way through the gateway."""

    def __init__(
        self, turns: Turns, session: Session, num_prompt_tokens: int, *, is_named: bool
    ) -> None:
        self.session = session
        self.is_last = False
        self._turns = turns
        self._is_named = is_named
        self._is_reported = not turns.hub.has_engine_events
        self._request_id = uuid.uuid4().hex if self._is_reported else ""
        self._turn_index = session.num_turns
        self._num_prompt_tokens = num_prompt_tokens
        self._submitted_at = turns.clock()
        self._reader: ReplyReader | None = None
        self._tail = b""
        self._num_chunks = 0

    @property
    def session_id(self) -> str:
        """What the engine is told in ``X-Session-ID``."""
        return self.session.session_id

    def submitted(self, max_output: int) -> None:
        """The request goes to the engine."""
        if self._is_reported:
            self._turns.hub.emit(
                ev.TurnSubmitted(
                    time=self._submitted_at,
                    session_id=self.session_id,
                    request_id=self._request_id,
                    turn_index=self._turn_index,
                    num_prompt_tokens=self._num_prompt_tokens,
                    projected_kv_blocks=-(-(self._num_prompt_tokens + max_output) // 16),
                )
            )

    def answered(self, status: int, *, is_stream: bool) -> None:
        """The reply's head passed; only successful replies are read."""
        if status == HTTPStatus.OK:
            self._reader = ReplyReader(is_stream)

    def saw(self, chunk: bytes) -> None:
        """Part of the reply passed."""
        if self._reader is not None:
            self._reader.feed(chunk)
        if not self._is_reported:
            return
        if not self._num_chunks:
            now = self._turns.clock()
            self._turns.hub.emit(
                ev.FirstToken(
                    time=now,
                    session_id=self.session_id,
                    request_id=self._request_id,
                    turn_index=self._turn_index,
                    ttft_s=now - self._submitted_at,
                )
            )
        self._num_chunks += chunk.count(b"\ndata:") + chunk.startswith(b"data:") or 1
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]

    def end(self, outcome: str) -> None:
        """The reply is complete (``stop``), broken (``error``) or given up (``abort``)."""
        turns = self._turns
        turns.closed()
        if self._is_reported:
            turns.hub.emit(self._finished(outcome))
        tools: list[CalledTool] = []
        if self._reader is not None and outcome == "stop":
            self._reader.finish()
            tools = self._reader.tools
            turns.echo.remember(self.session_id, self._reader)
        reason = self._end_reason(outcome, has_tools=bool(tools))
        if tools and reason is None:
            turns.tools.replied(self.session_id, tools)
        turns.admission.end_turn(self.session, reason)

    def _end_reason(self, outcome: str, *, has_tools: bool) -> str | None:
        """Why the session ends with this turn, or None if it goes on.

        A session without a name ends with the first reply that asks for no tool, since
        nobody else will say so; one with a name may have side calls that look the same.
        """
        if self.is_last:
            return "explicit"
        if self._is_named or has_tools:
            return None
        if outcome == "stop":
            return "single_turn" if self.session.num_turns == 1 else "final_answer"
        return "disconnected" if self.session.num_turns == 1 else None

    def _finished(self, outcome: str) -> ev.TurnFinished:
        usage = {name: self._last_number(pattern) for name, pattern in _USAGE.items()}
        return ev.TurnFinished(
            time=self._turns.clock(),
            session_id=self.session_id,
            request_id=self._request_id,
            turn_index=self._turn_index,
            num_prompt_tokens=usage["prompt"] or self._num_prompt_tokens,
            num_output_tokens=usage["output"] or self._num_chunks,
            num_cached_tokens=usage["cached"] or 0,
            num_recomputed_tokens=0,
            num_preemptions=0,
            freed_blocks=0,
            retained_blocks=0,
            finish_reason=outcome,
        )

    def _last_number(self, pattern: re.Pattern[bytes]) -> int | None:
        found = pattern.findall(self._tail)
        return int(found[-1]) if found else None
