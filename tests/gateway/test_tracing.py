# SPDX-License-Identifier: Apache-2.0
"""Spans of the stream: who is whose parent, from when to when, with which attributes."""

from __future__ import annotations

from typing import Any

import pytest

sdk = pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from mars.core import events as ev  # noqa: E402
from mars.gateway.tracing import Tracing  # noqa: E402

S = {"session_id": "s"}
TURN = S | {"request_id": "r1", "turn_index": 0}
TOOL = S | {"tool_call_id": "c1", "tool_name": "bash"}
END = {"cpu_seconds": 1.5, "peak_bytes": 10, "exit_code": 0}
COUNTS = {"num_preemptions": 1, "freed_blocks": 0, "retained_blocks": 0}


def finished(time: float, reason: str = "stop", **more: Any) -> ev.TurnFinished:
    tokens = {"num_prompt_tokens": 100, "num_output_tokens": 20, "num_cached_tokens": 60}
    return ev.TurnFinished(
        time=time,
        num_recomputed_tokens=5,
        finish_reason=reason,
        **(TURN | tokens | COUNTS | more),
    )


class Traced:
    """Spans of what is told, whose clock reads 1,000 s at the start."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = sdk.TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider, lambda: 1000.0)
        self.tracing.model_name = "some-model"

    def tell(self, *events: ev.Event) -> dict[str, Any]:
        """Spans that have ended so far, by name."""
        for event in events:
            self.tracing.apply(event)
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def after_s(self, at_ns: int) -> float:
        """Seconds after the start of what the clock says."""
        return round((at_ns - self.tracing._offset_ns) / 1e9 - 1000.0, 3)


def test_a_session_with_a_turn_and_its_tool() -> None:
    traced = Traced()
    spans = traced.tell(
        ev.SessionArrived(time=1000.0, **S, tenant="t", generation=2),
        ev.SessionAdmitted(time=1003.0, **S, held_s=3.0, mode="fcfs", num_active=1),
        ev.TurnSubmitted(time=1003.0, **TURN, num_prompt_tokens=90, projected_kv_blocks=9),
        ev.TurnStarted(time=1003.5, **TURN, num_cached_tokens=60, queue_s=0.5),
        ev.FirstToken(time=1004.0, **TURN, ttft_s=1.0),
        finished(1006.0),
        ev.ToolQueued(time=1006.1, **TOOL),
        ev.ToolStarted(time=1006.5, **TOOL, queued_s=0.4),
        ev.ToolFinished(time=1008.5, **TOOL, duration_s=2.0, **END),
        ev.SessionEnded(time=1009.0, **S, reason="explicit", num_turns=1),
    )
    session, turn, tool = (
        spans[name] for name in ("invoke_agent", "chat some-model", "execute_tool bash")
    )
    assert session.parent is None
    assert turn.parent.span_id == session.context.span_id
    assert tool.parent.span_id == turn.context.span_id
    times = [(traced.after_s(s.start_time), traced.after_s(s.end_time)) for s in spans.values()]
    assert sorted(times) == [(0.0, 9.0), (3.0, 6.0), (6.1, 8.5)]
    assert (turn.kind, tool.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert dict(session.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "some-model",
        "gen_ai.conversation.id": "s",
        "mars.tenant": "t",
        "mars.session.generation": 2,
        "mars.session.held_s": 3.0,
        "mars.session.mode": "fcfs",
        "mars.session.num_turns": 1,
        "mars.session.end_reason": "explicit",
    }
    assert dict(turn.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "some-model",
        "gen_ai.conversation.id": "s",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.response.finish_reasons": ("stop",),
        "mars.request.id": "r1",
        "mars.turn.index": 0,
        "mars.turn.queue_s": 0.5,
        "mars.turn.ttft_s": 1.0,
        "mars.turn.recomputed_tokens": 5,
        "mars.turn.num_preemptions": 1,
    }
    assert tool.attributes["gen_ai.operation.name"] == "execute_tool"
    assert tool.attributes["gen_ai.tool.name"] == "bash"
    assert tool.attributes["gen_ai.tool.call.id"] == "c1"
    assert tool.attributes["mars.tool.queue_s"] == 0.4
    assert tool.attributes["mars.tool.cpu_seconds"] == 1.5


def test_a_sub_agent_is_part_of_its_parents_trace() -> None:
    traced = Traced()
    traced.tell(
        ev.SessionArrived(time=1000.0, session_id="p"),
        ev.SessionArrived(time=1001.0, session_id="c", parent="p"),
        ev.SessionEnded(time=1002.0, session_id="c", reason="explicit"),
        ev.SessionEnded(time=1003.0, session_id="p", reason="explicit"),
    )
    child, parent = traced.exporter.get_finished_spans()
    assert child.parent.span_id == parent.context.span_id
    assert child.context.trace_id == parent.context.trace_id


def test_pauses_and_compactions_are_moments_of_the_session() -> None:
    traced = Traced()
    spans = traced.tell(
        ev.SessionArrived(time=1000.0, **S),
        ev.SessionPaused(time=1001.0, **S, context_tokens=10, num_active=2),
        ev.SessionResumed(time=1002.0, **S, paused_s=1.0, waited_s=0.5, num_active=3),
        ev.ContextReset(time=1003.0, **S, epoch=1, num_kept_tokens=4, reason="shrunk"),
        ev.SessionEnded(time=1004.0, **S, reason="explicit"),
    )
    moments = [(e.name, dict(e.attributes)) for e in spans["invoke_agent"].events]
    assert moments == [
        ("mars.session_paused", {"mars.context_tokens": 10, "mars.num_active": 2}),
        (
            "mars.session_resumed",
            {"mars.paused_s": 1.0, "mars.waited_s": 0.5, "mars.num_active": 3},
        ),
        (
            "mars.context_reset",
            {"mars.epoch": 1, "mars.num_kept_tokens": 4, "mars.reason": "shrunk"},
        ),
    ]


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_what_failed_is_an_error(reason: str) -> None:
    traced = Traced()
    spans = traced.tell(
        ev.TurnSubmitted(time=1.0, **TURN, num_prompt_tokens=1, projected_kv_blocks=1),
        finished(2.0, reason),
        ev.ToolFinished(time=3.0, **TOOL, duration_s=0.5, **(END | {"exit_code": -9})),
    )
    turn, tool = spans["chat some-model"], spans["execute_tool bash"]
    assert turn.status.status_code == tool.status.status_code == StatusCode.ERROR
    assert (turn.attributes["error.type"], tool.attributes["error.type"]) == (reason, "exit_-9")
    assert traced.after_s(tool.start_time) == 2.5 - 1000.0  # never seen to start


def test_what_is_open_ends_with_its_session_and_says_so() -> None:
    traced = Traced()
    spans = traced.tell(
        ev.TurnSubmitted(time=1.0, **TURN, num_prompt_tokens=1, projected_kv_blocks=1),
        ev.ToolStarted(time=2.0, **TOOL, queued_s=0.0),
        ev.SessionEnded(time=3.0, **S, reason="idle"),
        finished(4.0),
    )
    assert len(spans) == 3
    assert spans["chat some-model"].attributes["error.type"] == "unfinished"
    assert spans["execute_tool bash"].attributes["error.type"] == "unfinished"


def test_sessions_that_nobody_ends_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mars.gateway.tracing.MAX_SESSIONS", 3)
    traced = Traced()
    for name in "abcde":
        traced.tell(ev.SessionArrived(time=1.0, session_id=name))
        traced.tell(ev.SessionAdmitted(time=1.0, session_id="a", held_s=0, mode="", num_active=1))

    def ended() -> list[Any]:
        spans = traced.exporter.get_finished_spans()
        return [span.attributes["gen_ai.conversation.id"] for span in spans]

    assert ended() == ["b", "c"]  # "a" was heard of
    traced.tracing.close()
    assert sorted(ended()) == ["a", "b", "c", "d", "e"]


def test_the_service_is_named_by_us_or_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> Any:
        tracing = Tracing.from_environment()
        tracing.close()
        return tracing._provider.resource.attributes["service.name"]

    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert name() == "mars-gateway"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert name() == "mine"
