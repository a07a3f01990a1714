# SPDX-License-Identifier: Apache-2.0
"""Generated sessions, turns and loads, odd ones included."""

from __future__ import annotations

from hypothesis import strategies as st

from mars.core.model import Load, Session, ToolCall, Turn

seconds = st.floats(min_value=-1.0e6, max_value=1.0e7)
tokens = st.integers(min_value=0, max_value=2_000_000)
maybe_blocks = st.none() | st.integers(min_value=0, max_value=200_000)
counts = st.none() | st.integers(min_value=0, max_value=10_000)
shares = st.none() | st.floats(min_value=0.0, max_value=2.0)
delays = st.none() | st.floats(min_value=0.0, max_value=1.0e5)


@st.composite
def tool_calls(draw: st.DrawFn) -> ToolCall:
    name = draw(st.text(max_size=8))
    return ToolCall("t", "s", name, draw(seconds), draw(st.none() | seconds))


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    return Session(
        draw(st.text(max_size=6)),
        arrival_time=draw(seconds),
        num_turns=draw(st.integers(0, 1000)),
        context_tokens=draw(tokens),
        cached_tokens=draw(tokens),
        num_computed_tokens=draw(tokens),
        attained_service_s=draw(st.floats(0.0, 1.0e6)),
        last_service_time=draw(st.none() | seconds),
        last_turn_finished_at=draw(st.none() | seconds),
        num_open_turns=draw(st.integers(0, 3)),
        tool=draw(st.none() | tool_calls()),
        expected_return_at=draw(st.none() | seconds),
        weight=draw(st.floats(0.0, 100.0)),
    )


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    return Turn(
        draw(st.text(max_size=6)),
        draw(sessions()),
        draw(st.integers(0, 1000)),
        draw(seconds),
        num_prompt_tokens=draw(tokens),
        num_cached_tokens=draw(tokens),
        num_computed_tokens=draw(tokens),
        num_output_tokens=draw(st.integers(0, 10_000)),
        num_preemptions=draw(st.integers(0, 5)),
        priority=draw(st.integers(-100, 100)),
        is_running=draw(st.booleans()),
        is_last_turn=draw(st.none() | st.booleans()),
        last_service_time=draw(st.none() | seconds),
    )


@st.composite
def loads(draw: st.DrawFn) -> Load:
    return Load(
        draw(seconds),
        kv_blocks_total=draw(maybe_blocks),
        kv_blocks_free=draw(maybe_blocks),
        kv_blocks_retained=draw(maybe_blocks),
        block_size=draw(st.sampled_from([1, 16, 64])),
        num_running=draw(counts),
        num_waiting=draw(counts),
        num_held=draw(counts),
        preemptions=draw(counts),
        computed_tokens=draw(counts),
        recomputed_tokens=draw(counts),
        cpu_cores=draw(counts),
        cpu_usage=draw(shares),
        cpu_pressure=draw(shares),
        tool_slots=draw(counts),
        tools_running=draw(counts),
        tools_queued=draw(counts),
        tool_queue_delay_s=draw(delays),
    )
