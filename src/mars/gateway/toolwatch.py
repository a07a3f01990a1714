# SPDX-License-Identifier: Apache-2.0
"""Infers tool calls of sessions whose tools nobody reports.

A tool runs from the end of the reply that asks for it to the request that brings its
result (0.05 to 1 s more than the tool itself: CLIENTS section 3.2). A request that does not
name the call (title, summary) ends nothing. Inferred events carry the source ``inferred``;
what they cannot know (CPU seconds, memory, exit code) is 0 in them.
"""

from __future__ import annotations

from collections.abc import Callable

from mars.core import events as ev
from mars.gateway.replies import CalledTool

SOURCE = "inferred"
BELIEVED_S = 120.0
"""An agent may have ended, or wait for a human, without a word: an inferred call that is older
holds up nobody else (99 of 100 recorded tools take less)."""

EmitAs = Callable[[ev.Event, str], object]


class ToolWatch:
    """Open inferred calls of all sessions.

    Args:
        emit: receives (event, source).
        clock: monotonic seconds.
    """

    def __init__(self, emit: EmitAs, clock: Callable[[], float]) -> None:
        self._emit = emit
        self._clock = clock
        self._open: dict[str, dict[str, tuple[CalledTool, float]]] = {}
        self._reported: set[str] = set()

    @property
    def num_running(self) -> int:
        """Inferred calls that run now, as far as that is to be believed."""
        since = self._clock() - BELIEVED_S
        return sum(at > since for calls in self._open.values() for _, at in calls.values())

    def is_reported(self, session_id: str) -> bool:
        """Whether a tool runtime reports the calls of this session."""
        return session_id in self._reported

    def queued(self, session_id: str, tools: list[CalledTool]) -> None:
        """The reply that asks for these tools is kept back."""
        for tool in tools:
            self._emit(
                ev.ToolQueued(
                    time=self._clock(),
                    session_id=session_id,
                    tool_call_id=tool.tool_call_id,
                    tool_name=tool.tool_name,
                ),
                SOURCE,
            )

    def given_up(self, session_id: str, tools: list[CalledTool]) -> None:
        """The client left before it got the reply: its queued tools will never run."""
        for tool in tools:
            self._open.setdefault(session_id, {})[tool.tool_call_id] = (tool, self._clock())
            self._finish(session_id, tool.tool_call_id)

    def replied(self, session_id: str, tools: list[CalledTool], queued_s: float = 0.0) -> None:
        """A reply that asks for these tools is with its client, after so long."""
        if session_id in self._reported:
            return
        now = self._clock()
        for tool in tools:
            self._open.setdefault(session_id, {})[tool.tool_call_id] = (tool, now)
            self._emit(
                ev.ToolStarted(
                    time=now,
                    session_id=session_id,
                    tool_call_id=tool.tool_call_id,
                    tool_name=tool.tool_name,
                    queued_s=queued_s,
                ),
                SOURCE,
            )

    def requested(self, session_id: str, body: bytes) -> None:
        """A request of the session came: the calls that it names are over."""
        calls = self._open.get(session_id, {})
        for call_id in [c for c in calls if c.encode() in body]:
            self._finish(session_id, call_id)

    def apply(self, event: ev.Event, source: str) -> None:
        """Give way to whoever reports a session's tools; forget ended sessions."""
        if isinstance(event, ev.SessionEnded):
            self._open.pop(event.session_id, None)
            self._reported.discard(event.session_id)
        elif source != SOURCE and isinstance(event, ev.ToolQueued | ev.ToolStarted):
            self._reported.add(event.session_id)
            self._open.get(event.session_id, {}).pop(event.tool_call_id, None)
            for call_id in list(self._open.get(event.session_id, {})):
                self._finish(event.session_id, call_id)

    def _finish(self, session_id: str, call_id: str) -> None:
        tool, started_at = self._open[session_id].pop(call_id)
        now = self._clock()
        self._emit(
            ev.ToolFinished(
                time=now,
                session_id=session_id,
                tool_call_id=call_id,
                tool_name=tool.tool_name,
                duration_s=now - started_at,
                cpu_seconds=0.0,
                peak_bytes=0,
                exit_code=0,
            ),
            SOURCE,
        )
