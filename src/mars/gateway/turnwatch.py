# SPDX-License-Identifier: Apache-2.0
"""One turn on its way through the gateway: told, read, kept back if need be, ended."""

from __future__ import annotations

import re
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

from mars.core import events as ev
from mars.core.model import Session
from mars.gateway.patience import Patience
from mars.gateway.replies import CalledTool, ReplyReader

if TYPE_CHECKING:
    from mars.gateway.turns import Turns

MAX_KEPT_BYTES = 8 * 2**20
"""Of a reply that is kept back; a longer one goes on as it comes."""
TAIL_BYTES = 4096
"""End of a reply kept to read its usage from."""
_USAGE = {
    "prompt": re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)'),
    "output": re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)'),
    "cached": re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d+)'),
}


class TurnWatch:
    """One turn on its way through the gateway."""

    def __init__(
        self,
        turns: Turns,
        session: Session,
        num_prompt_tokens: int,
        *,
        is_named: bool,
        is_side: bool,
        patience: Patience,
        arrived_at: float,
    ) -> None:
        self.session = session
        self.is_side = is_side
        self.is_last = False
        self.offers_tools = False
        """The request names tools, so that a reply without calls means something: agents that
        read their actions from text have none."""
        self.has_priority = False
        """The client stamped a priority of its own."""
        self._turns = turns
        self._is_named = is_named
        self._is_reported = not turns.hub.has_engine_events
        self._request_id = uuid.uuid4().hex if self._is_reported else ""
        self._turn_index = session.num_turns
        self._num_prompt_tokens = num_prompt_tokens
        self._submitted_at = turns.clock()
        self._patience = patience
        self._arrived_at = arrived_at
        self._reader: ReplyReader | None = None
        self._tail = b""
        self._num_chunks = 0
        self._is_complete = False
        self._queued_s = 0.0
        self._kept: list[bytes] | None = None
        self._num_kept_bytes = 0

    @property
    def session_id(self) -> str:
        """Whose turn it is."""
        return self.session.session_id

    @property
    def engine_session_id(self) -> str:
        """What the engine is told in ``X-Session-ID``."""
        return f"{self.session_id}/side" if self.is_side else self.session_id

    @property
    def priority(self) -> int:
        """What a stock engine may be told in ``X-Vllm-Priority``."""
        return self._turns.priority(self.session)

    def submitted(self, max_output: int) -> None:
        """The request goes to the engine."""
        if self._is_reported:
            if self.is_side:
                self._turns.side_requests.add(self._request_id)
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

    # --- replies that ask for tools --------------------------------------------------
    def keeps(self, chunk: bytes) -> bool:
        """Whether this part of the reply is kept back until :meth:`complete` returned.

        From the first part that carries a tool call on, or all of a reply that is not
        streamed: nothing of a call may reach its client before its tool may start.
        """
        reader = self._reader
        if self._kept is None:
            may_ask = reader is not None and (reader.has_tools or not reader.is_stream)
            if self.is_side or not may_ask or not self._turns.holds_replies:
                return False
            if self._is_complete or not self._turns.hold.is_needed(self.session):
                return False
            self._kept = []
        self._num_kept_bytes += len(chunk)
        if self._num_kept_bytes > MAX_KEPT_BYTES:
            return False
        self._kept.append(chunk)
        return True

    def kept(self) -> list[bytes]:
        """What was kept back so far, to be sent now."""
        parts, self._kept = self._kept or [], [] if self._kept is not None else None
        return parts

    async def complete(self) -> None:
        """The engine's reply is complete; returns when its client may have all of it."""
        self._is_complete = True
        if self._is_reported:
            self._turns.hub.emit(self._finished("stop"))
        reader = self._reader
        if reader is None or self.is_side:
            return
        reader.finish()
        self._turns.echo.remember(self.session_id, reader)
        if reader.running_tools:
            bears_s = self._patience.silent_s
            if not reader.is_stream:  # its client has heard nothing since it asked
                bears_s -= self._turns.clock() - self._arrived_at
            wait_s = min(self._turns.admission.config.tool_hold_s, bears_s)
            self._queued_s = await self._turns.hold.pass_on(
                self.session,
                reader.running_tools,
                wait_s,
                is_kept=self._kept is not None and self._num_kept_bytes <= MAX_KEPT_BYTES,
            )

    def end(self, outcome: str) -> None:
        """The reply is complete (``stop``), broken (``error``) or given up (``abort``)."""
        turns, reader = self._turns, self._reader
        has_all = reader is not None and reader.is_over and not self._kept
        if outcome == "abort" and reader is not None and has_all:
            outcome = "stop"
            if not self._is_complete and not self.is_side:
                reader.finish()
                turns.echo.remember(self.session_id, reader)
        turns.closed()
        if self._is_reported and not self._is_complete:
            turns.hub.emit(self._finished(outcome))
        turns.side_requests.discard(self._request_id)
        if self.is_side:
            # Nobody else would end a session that came back for a side call only.
            is_alone = self.session.num_turns == 0 and self.session.num_open_turns == 1
            reason = "single_turn" if is_alone and not self._is_named else None
            turns.admission.end_turn(self.session, reason, is_side=True)
            turns.hub.send("session_end", session_id=self.engine_session_id)
            return
        tools: list[CalledTool] = []
        if reader is not None and outcome == "stop":
            tools = reader.running_tools
            self.session.has_answered = self.offers_tools and not tools
        reason = self._end_reason(outcome, has_tools=bool(tools))
        if tools and reason is None:
            turns.tools.replied(self.session_id, tools, self._queued_s)
            turns.contexts.replied(self.session_id, tools)
        turns.admission.end_turn(self.session, reason)

    def _end_reason(self, outcome: str, *, has_tools: bool) -> str | None:
        """Why the session ends with this turn, or None if it goes on.

        A session without a name ends with the first reply that asks for no tool, since
        nobody else will say so; one with a name may have side calls that look the same, and
        ends at once only where the model calls its task done.
        """
        if self.is_last:
            return "explicit"
        if has_tools:
            return None
        if self._is_named:
            is_done = outcome == "stop" and self._reader is not None and self._reader.has_tools
            return "final_answer" if is_done else None
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
