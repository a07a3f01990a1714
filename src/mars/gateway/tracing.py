# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans of the stream: session > turn > tool call, by the GenAI conventions.

One more reader of the events, beside the path of requests. Attributes are ids, names,
sizes and times, never text. Needs the extra ``otel``; where spans go is said by the
standard ``OTEL_EXPORTER_OTLP_...`` variables.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mars import __version__
from mars.core import events as ev
from mars.telemetry.bus import Reader

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

MAX_SESSIONS = 20_000
"""Sessions followed at once; of more, the one not heard of for longest is closed."""
SERVICE = "mars-gateway"
PROVIDER = "vllm"

# Names of the GenAI semantic conventions, still in development there, so kept here.
OPERATION = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
CONVERSATION = "gen_ai.conversation.id"
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL = "gen_ai.tool.call.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
ERROR = "error.type"


class TracingError(RuntimeError):
    """Spans cannot be made; the message names the setting and the fix."""


@dataclass(slots=True)
class Life:
    """The open spans of one session."""

    span: Span
    turns: dict[str, Span] = field(default_factory=dict)
    tools: dict[str, Span] = field(default_factory=dict)
    last_turn: Span | None = None
    """The turn that asked for the tools that come now; it may have ended."""


class Tracing:
    """Turns events into spans.

    Args:
        provider: makes and exports spans.
        clock: the monotonic seconds of the events.
    """

    def __init__(
        self, provider: TracerProvider, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model_name = "unknown"
        self._provider = provider
        self._tracer = provider.get_tracer("mars", __version__)
        self._offset_ns = time.time_ns() - round(clock() * 1e9)
        self._lives: OrderedDict[str, Life] = OrderedDict()
        self._steps: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SessionArrived: self._arrived,
            ev.SessionAdmitted: self._admitted,
            ev.SessionPaused: self._note,
            ev.SessionResumed: self._note,
            ev.ContextReset: self._note,
            ev.SessionEnded: self._ended,
            ev.TurnSubmitted: self._turn_submitted,
            ev.TurnStarted: self._turn_started,
            ev.FirstToken: self._first_token,
            ev.TurnFinished: self._turn_finished,
            ev.ToolQueued: self._tool_queued,
            ev.ToolStarted: self._tool_started,
            ev.ToolFinished: self._tool_finished,
        }

    @classmethod
    def from_environment(cls, clock: Callable[[], float] = time.monotonic) -> Self:
        """Export by OTLP over HTTP, configured by the standard ``OTEL_...`` variables.

        Raises:
            TracingError: the packages are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"telemetry.spans needs OpenTelemetry ({error}): pip install "
                "'mars-serving[otel]', or leave it out"
            ) from error
        named = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=Resource.create().merge(named))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, clock)

    async def follow(self, reader: Reader) -> None:
        """Make spans of what is read, until cancelled."""
        while True:
            await reader.wait()
            for record in reader.read():
                self.apply(record.event)

    def apply(self, event: ev.Event) -> None:
        """Take in the next event; kinds that say nothing of a span are passed over."""
        step = self._steps.get(type(event))
        if step is not None:
            step(event)

    def close(self) -> None:
        """End what is open and send it; may take as long as the exporter's time-out."""
        for session_id in list(self._lives):
            self._close(session_id, time.time_ns(), "shutdown")
        self._provider.shutdown()

    # --- sessions --------------------------------------------------------------------
    def _arrived(self, event: ev.SessionArrived) -> None:
        life = self._open(event.session_id, event.time, event.parent)
        life.span.set_attributes(
            {
                "mars.tenant": event.tenant,
                "mars.session.generation": event.generation,
            }
        )
        if event.parent is not None:
            life.span.set_attribute("mars.session.parent", event.parent)

    def _admitted(self, event: ev.SessionAdmitted) -> None:
        life = self._life(event)
        life.span.set_attributes(
            {"mars.session.held_s": event.held_s, "mars.session.mode": event.mode}
        )
        life.span.add_event("mars.session_admitted", timestamp=self._ns(event.time))

    def _note(self, event: ev.SessionPaused | ev.SessionResumed | ev.ContextReset) -> None:
        """A moment in a session's life, with what its event says beside time and id."""
        told = {name: getattr(event, name) for name in event.__slots__}
        attributes = {f"mars.{name}": value for name, value in told.items()}
        self._life(event).span.add_event(f"mars.{event.kind}", attributes, self._ns(event.time))

    def _ended(self, event: ev.SessionEnded) -> None:
        if life := self._lives.get(event.session_id):
            life.span.set_attribute("mars.session.num_turns", event.num_turns)
            self._close(event.session_id, self._ns(event.time), event.reason)

    def _open(self, session_id: str, at: float, parent: str | None = None) -> Life:
        above = self._lives.get(parent) if parent else None
        self._close(session_id, self._ns(at), "replaced")
        span = self._start("invoke_agent", at, above.span if above else None, session_id)
        life = self._lives[session_id] = Life(span)
        if len(self._lives) > MAX_SESSIONS:
            self._close(next(iter(self._lives)), self._ns(at), "forgotten")
        return life

    def _life(self, event: ev.SessionEvent) -> Life:
        """The session's spans; begun now for one that arrived before this reader."""
        life = self._lives.get(event.session_id)
        if life is None:
            return self._open(event.session_id, event.time)
        self._lives.move_to_end(event.session_id)
        return life

    def _close(self, session_id: str, at_ns: int, reason: str) -> None:
        life = self._lives.pop(session_id, None)
        if life is None:
            return
        for span in (*life.tools.values(), *life.turns.values()):
            span.set_attribute(ERROR, "unfinished")
            span.end(at_ns)
        life.span.set_attribute("mars.session.end_reason", reason)
        life.span.end(at_ns)

    # --- turns -----------------------------------------------------------------------
    def _turn_submitted(self, event: ev.TurnSubmitted) -> None:
        life = self._life(event)
        span = self._start(f"chat {self.model_name}", event.time, life.span, event.session_id)
        span.set_attributes(
            {
                OPERATION: "chat",
                "mars.request.id": event.request_id,
                "mars.turn.index": event.turn_index,
            }
        )
        life.turns[event.request_id] = life.last_turn = span

    def _turn_started(self, event: ev.TurnStarted) -> None:
        if span := self._turn(event):
            span.set_attribute("mars.turn.queue_s", event.queue_s)

    def _first_token(self, event: ev.FirstToken) -> None:
        if span := self._turn(event):
            span.set_attribute("mars.turn.ttft_s", event.ttft_s)
            span.add_event("mars.first_token", timestamp=self._ns(event.time))

    def _turn_finished(self, event: ev.TurnFinished) -> None:
        life = self._lives.get(event.session_id)
        span = life.turns.pop(event.request_id, None) if life else None
        if span is None:
            return
        span.set_attributes(
            {
                INPUT_TOKENS: event.num_prompt_tokens,
                OUTPUT_TOKENS: event.num_output_tokens,
                CACHED_TOKENS: event.num_cached_tokens,
                FINISH_REASONS: (event.finish_reason,),
                "mars.turn.recomputed_tokens": event.num_recomputed_tokens,
                "mars.turn.num_preemptions": event.num_preemptions,
            }
        )
        if event.finish_reason in {"error", "abort"}:
            self._fail(span, event.finish_reason)
        span.end(self._ns(event.time))

    def _turn(self, event: ev.TurnStarted | ev.FirstToken) -> Span | None:
        life = self._lives.get(event.session_id)
        return life.turns.get(event.request_id) if life else None

    # --- tools -----------------------------------------------------------------------
    def _tool_queued(self, event: ev.ToolQueued) -> None:
        self._tool(event, event.time)

    def _tool_started(self, event: ev.ToolStarted) -> None:
        span = self._tool(event, event.time - event.queued_s)
        span.set_attribute("mars.tool.queue_s", event.queued_s)

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        span = self._tool(event, event.time - event.duration_s)
        del self._lives[event.session_id].tools[event.tool_call_id]
        span.set_attributes(
            {
                "mars.tool.cpu_seconds": event.cpu_seconds,
                "mars.tool.peak_bytes": event.peak_bytes,
                "mars.tool.exit_code": event.exit_code,
            }
        )
        if event.is_timed_out or event.exit_code:
            self._fail(span, "timeout" if event.is_timed_out else f"exit_{event.exit_code}")
        span.end(self._ns(event.time))

    def _tool(self, event: ev.ToolQueued | ev.ToolStarted | ev.ToolFinished, at: float) -> Span:
        life = self._life(event)
        span = life.tools.get(event.tool_call_id)
        if span is None:
            above = life.last_turn or life.span
            span = self._start(f"execute_tool {event.tool_name}", at, above, event.session_id)
            span.set_attributes(
                {
                    OPERATION: "execute_tool",
                    TOOL_NAME: event.tool_name,
                    TOOL_CALL: event.tool_call_id,
                }
            )
            life.tools[event.tool_call_id] = span
        return span

    # --- spans -----------------------------------------------------------------------
    def _start(self, name: str, at: float, above: Span | None, session_id: str) -> Span:
        from opentelemetry.trace import SpanKind, set_span_in_context

        context: Context | None = set_span_in_context(above) if above is not None else None
        attributes = {
            OPERATION: "invoke_agent",
            PROVIDER_NAME: PROVIDER,
            MODEL: self.model_name,
            CONVERSATION: session_id,
        }
        kind = SpanKind.CLIENT if name.startswith("chat ") else SpanKind.INTERNAL
        return self._tracer.start_span(
            name, context, kind, attributes=attributes, start_time=self._ns(at)
        )

    @staticmethod
    def _fail(span: Span, why: str) -> None:
        from opentelemetry.trace import StatusCode

        span.set_attribute(ERROR, why)
        span.set_status(StatusCode.ERROR)

    def _ns(self, at: float) -> int:
        return self._offset_ns + round(at * 1e9)
