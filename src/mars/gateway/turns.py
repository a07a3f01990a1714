# SPDX-License-Identifier: Apache-2.0
"""Turns as the gateway sees them: whose they are, when they began, answered and ended.

Where the engine's plug-in reports turns itself (tokens, cache hits), the gateway keeps
only its own books; in front of a stock vLLM it emits the turn events from what passes.
A side call (title, summary) goes to the engine under an id of its own, so that it counts
as no step of its session there either.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

from mars.config import ToolsConfig
from mars.core import events as ev
from mars.core.model import Session, ToolCall
from mars.core.policy import tool_policies
from mars.core.replygate import ReplyGate
from mars.gateway.admission import Admission
from mars.gateway.comebacks import Comebacks
from mars.gateway.contexts import Contexts, Verdict
from mars.gateway.echo import EchoIndex
from mars.gateway.hub import Hub
from mars.gateway.identity import Identity, Peek, identify, max_output_tokens, prompt_tokens
from mars.gateway.load import LoadBoard
from mars.gateway.openai import ApiError
from mars.gateway.patience import UNKNOWN_S, Patience
from mars.gateway.places import Beat
from mars.gateway.replyhold import ReplyHold
from mars.gateway.tenants import DEFAULT
from mars.gateway.toolwatch import ToolWatch
from mars.gateway.turnwatch import TurnWatch

GENERATIONS_KEPT = 20_000
"""Open requests of the engine whose session's life is remembered."""
QUOTE = "quote"
"""Source of an identity: the request quotes a reply, without being a step of its session."""
PRIORITY_STEP_S = 0.1
"""Sessions that arrive this much apart get priorities that differ by one."""


class Turns:
    """Opens turns: finds the session, waits for its admission, counts.

    Args:
        admission: holds and admits sessions.
        hub: receives events.
        board: told how many turns are open.
        clock: monotonic seconds.
        tools: order and slots of replies that are kept back.
    """

    def __init__(
        self,
        admission: Admission,
        hub: Hub,
        board: LoadBoard,
        clock: Callable[[], float],
        tools: ToolsConfig | None = None,
    ) -> None:
        self.admission = admission
        self.hub = hub
        self.clock = clock
        self.num_open = 0
        self.echo = EchoIndex()
        self.tools = ToolWatch(hub.emit, clock)
        self.contexts = Contexts()
        tools = tools or ToolsConfig()
        policy = tool_policies.create(tools.policy, **tools.policy_options)
        gate = ReplyGate(policy, tools.slots)
        self.hold = ReplyHold(gate, self.tools, board.load, clock)
        self._comebacks = Comebacks(admission.held)
        self._board = board
        self._started_at = clock()
        self.side_requests: set[str] = set()
        """Open side calls that the gateway itself reports."""
        self._lives: OrderedDict[str, int] = OrderedDict()

    async def begin(
        self,
        headers: Mapping[str, str],
        body: bytes,
        looked_at: Peek,
        path_id: str | None,
        beat: Beat | None = None,
        tenant: str = DEFAULT,
        patience: Patience | None = None,
    ) -> TurnWatch:
        """Return when the turn of a tenant may go to the engine.

        Raises:
            ApiError: a bad session id, or the session cannot be admitted now.
        """
        patience = patience or Patience(None, None, UNKNOWN_S)
        arrived_at = self.clock()
        who = identify(headers, looked_at, path_id)
        is_named = who is not None
        who = replace(who or self._recognised(looked_at, body, tenant), tenant=tenant)
        num_prompt_tokens = prompt_tokens(looked_at)
        try:
            session = await self.admission.enter(who, num_prompt_tokens, beat, patience.budget_s)
        except (ApiError, asyncio.CancelledError):
            if not is_named:
                self._comebacks.left(tenant, body, who.session_id)
            raise
        if who.source == QUOTE:
            verdict = Verdict(is_side=True)
        else:
            verdict = self.contexts.judge(session, headers, looked_at, body)
        if verdict.reason is not None:
            self._reset(session, num_prompt_tokens, verdict)
        if not verdict.is_side:
            self.tools.requested(session.session_id, body)
        turn = TurnWatch(
            self,
            session,
            num_prompt_tokens,
            is_named=is_named,
            is_side=verdict.is_side,
            patience=patience,
            arrived_at=arrived_at,
        )
        turn.is_last = who.is_final
        turn.offers_tools = looked_at.offers_tools
        self.admission.begin_turn(session, is_side=verdict.is_side)
        self._count(+1)
        turn.submitted(max_output_tokens(looked_at))
        return turn

    def _recognised(self, looked_at: Peek, body: bytes, tenant: str) -> Identity:
        """The session of a request that names none."""
        echoed = self.echo.find(looked_at)
        if echoed and self.admission.tenant_of(echoed) in {None, tenant}:
            return Identity(echoed, "echo")
        if left := self._comebacks.find(tenant, body):
            return Identity(left, "retry")
        quoted = self.echo.quoted(looked_at)
        if quoted and self.admission.tenant_of(quoted) in {None, tenant}:
            return Identity(quoted, QUOTE)
        return Identity(f"anon-{uuid.uuid4().hex}", "none")

    def _reset(self, session: Session, num_prompt_tokens: int, verdict: Verdict) -> None:
        """The session's client compacted: a new epoch, with a prompt of that size."""
        session.epoch += 1
        session.context_tokens = num_prompt_tokens
        self.hub.emit(
            ev.ContextReset(
                time=self.clock(),
                session_id=session.session_id,
                epoch=session.epoch,
                num_kept_tokens=verdict.num_kept_tokens,
                reason=verdict.reason or "",
            )
        )

    @property
    def holds_replies(self) -> bool:
        """Whether replies that ask for tools may be kept back at all."""
        return self.admission.config.hold_tool_replies == "auto"

    def priority(self, session: Session) -> int:
        """For ``X-Vllm-Priority``; lower is sooner: the session that arrived first."""
        return int((session.arrival_time - self._started_at) / PRIORITY_STEP_S)

    def closed(self) -> None:
        """One turn less is open."""
        self._count(-1)

    def _count(self, change: int) -> None:
        self.num_open += change
        self._board.turns_open(self.num_open, self.clock())

    def apply(self, event: ev.Event, source: str) -> None:
        """Learn from the stream what a session's context and tools are."""
        self.tools.apply(event, source)
        self.hold.apply(event, source)
        self.contexts.apply(event)
        if not isinstance(event, ev.SessionEvent):
            return
        session = self.admission.active.sessions.get(event.session_id)
        if session is None:
            return
        if isinstance(event, ev.TurnSubmitted):
            self._lives[event.request_id] = session.generation
            if len(self._lives) > GENERATIONS_KEPT:
                self._lives.popitem(last=False)
        elif isinstance(event, ev.TurnFinished):
            # A late completion of an earlier life says nothing of the present one.
            if self._lives.pop(event.request_id, session.generation) != session.generation:
                return
            num_tokens = event.num_prompt_tokens + event.num_output_tokens
            session.num_computed_tokens += num_tokens - event.num_cached_tokens
            if event.request_id not in self.side_requests:
                session.context_tokens = num_tokens
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
