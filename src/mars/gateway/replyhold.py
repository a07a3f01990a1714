# SPDX-License-Identifier: Apache-2.0
"""Keeps back replies that ask for tools while the CPUs of this host are swamped.

For clients whose tools nobody reports: those that run them under a tool runtime of ours
queue there. A reply is only delayed, never changed; its client leaving cancels it, and its
patience bounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mars.core import events as ev
from mars.core.model import Load, Session, ToolCall
from mars.core.replygate import KeptReply, ReplyGate
from mars.gateway.replies import CalledTool
from mars.gateway.toolwatch import SOURCE, ToolWatch


class ReplyHold:
    """The replies that are kept back, and who waits on them.

    Args:
        gate: decides who waits and who goes first.
        watch: knows the calls that run.
        load: the present load.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gate: ReplyGate,
        watch: ToolWatch,
        load: Callable[[float], Load],
        clock: Callable[[], float],
    ) -> None:
        self._gate = gate
        self._watch = watch
        self._load = load
        self._clock = clock
        self._calls: dict[str, dict[str, ToolCall]] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}

    @property
    def num_kept(self) -> int:
        """Replies kept back now."""
        return len(self._gate.kept)

    def is_needed(self, session: Session) -> bool:
        """Whether a reply of this session that asks for a tool has to wait now."""
        if self._watch.is_reported(session.session_id):
            return False
        now = self._clock()
        return self._gate.is_closed(self._load(now), self._watch.num_running, now)

    async def pass_on(
        self, session: Session, tools: list[CalledTool], wait_s: float, *, is_kept: bool
    ) -> float:
        """Return when a reply with these tools may go to its client; how long it waited (s).

        Args:
            session: whose reply it is.
            tools: what it asks for.
            wait_s: the most that its client bears.
            is_kept: it was kept back; otherwise its tools are only noted.
        """
        now = self._clock()
        calls = [ToolCall(t.tool_call_id, session.session_id, t.tool_name, now) for t in tools]
        self._calls.setdefault(session.session_id, {}).update({c.tool_call_id: c for c in calls})
        self._gate.asked(session, calls, now)
        if is_kept and self.is_needed(session):
            self._watch.queued(session.session_id, tools)
            try:
                await self._wait(KeptReply(session, calls), wait_s)
            except asyncio.CancelledError:
                self._watch.given_up(session.session_id, tools)
                raise
        started_at = self._clock()
        for call in calls:
            call.started_at = started_at
        return started_at - now

    async def _wait(self, reply: KeptReply, wait_s: float) -> None:
        freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[id(reply)] = freed
        self._gate.keep(reply)
        try:
            await asyncio.wait((freed,), timeout=max(0.0, wait_s))
        finally:
            self._gate.give_up(reply)
            del self._waiting[id(reply)]

    def apply(self, event: ev.Event, source: str) -> None:
        """Let replies go as tools end and the load falls; tell the policy what it learns from."""
        if isinstance(event, ev.SessionEnded):
            for call in self._calls.pop(event.session_id, {}).values():
                self._gate.policy.on_finish(call, event.time)
            self._gate.policy.on_session_end(event.session_id, event.time)
        elif isinstance(event, ev.ToolFinished) and source == SOURCE:
            call = self._calls.get(event.session_id, {}).pop(event.tool_call_id, None)
            if call is not None:
                call.finished_at = event.time if call.started_at is not None else None
                self._gate.policy.on_finish(call, event.time)
        elif not isinstance(event, ev.HostSampled):
            return
        self._release()

    def _release(self) -> None:
        if not self._gate.kept:
            return
        now = self._clock()
        for reply in self._gate.opened(self._load(now), self._watch.num_running, now):
            freed = self._waiting.get(id(reply))
            if freed is not None and not freed.done():
                freed.set_result(None)
