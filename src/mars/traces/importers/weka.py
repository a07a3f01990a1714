# SPDX-License-Identifier: Apache-2.0
"""Real users' Claude Code sessions of kv-cache-tester, as published (raw) or merged (replay).

Both forms give the same sessions. In the raw form of v6 the capturing proxy sent every turn twice
(streaming 's', then the same prompt as 'n'); the twins become one turn. v8 (``hash_id_scope``
"local") has dropped the first twin but left its time in the gaps: there a turn starts one
``api_time`` before its 'n'.

The recording has gaps, not tool calls, and gaps include permission prompts. A gap before a prompt
that holds tool results becomes one tool call named "tool" of at most ``tool_cap_s``; the rest of
it, and the whole of a gap before a user's message, is client time (``gap_s``). Prompts of which
the recording says neither, or both, count as tool results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct, field

from mars.traces.importers.rows import checked, read_rows
from mars.traces.schema import Count, Name, Positive, TraceSession, TraceTurn, runs_of
from mars.traces.toolcost import call_rng, fill_in

TOOL_CAP_S = 120.0
"""Claude Code's default limit on a shell command; what is longer waits for a human."""


class _ReplayTurn(Struct):
    num_input: Positive = field(name="in")
    num_output: Count = field(name="out")
    kind: Literal["user", "tool", "mixed"]
    gap_s: float | None
    runs: tuple[tuple[Count, Count], ...] = field(name="hash")


class _Request(Struct):
    t: float
    type: str
    num_input: Count = field(name="in", default=0)
    num_output: Count = field(name="out", default=0)
    hash_ids: tuple[Count, ...] = ()
    input_types: tuple[str, ...] = ()
    api_time: float = 0.0
    model: str | None = None
    requests: tuple[_Request, ...] = ()
    agent_id: str = ""


class _Line(Struct):
    """Either form: ``turns`` is the replay form, ``requests`` the raw one."""

    block_size: Positive
    session: Name | None = None
    id: Name | None = None
    source: str | None = None
    model: str | None = None
    models: tuple[str, ...] = ()
    hash_scope: str = "global"
    hash_id_scope: str = "global"
    turns: tuple[_ReplayTurn, ...] = ()
    requests: tuple[_Request, ...] = ()


class _Step(NamedTuple):
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[tuple[int, int], ...]
    kind: str
    gap_s: float


def read_weka(
    path: str | Path,
    *,
    seed: int = 0,
    tool_cap_s: float = TOOL_CAP_S,
    include_subagents: bool = False,
) -> Iterator[TraceSession]:
    """Read raw or replay lines as sessions, in file order.

    Args:
        path: the recording.
        seed: of the modelled CPU seconds and memory.
        tool_cap_s: longest tool call; what a gap has beyond it is human time.
        include_subagents: also yield the sub-agents of the raw form, each as a session of its
            own with ``parent`` set; parents arrive at 0, so ``arrival_s`` is the offset.
    """
    for line, row in read_rows(path, _Line):
        session_id = row.session or row.id or f"line{line}"
        is_local = "local" in (row.hash_scope, row.hash_id_scope)
        scope = f"weka:{session_id}" if is_local else "weka"
        steps = [_replay_step(turn) for turn in row.turns] or _raw_steps(row.requests, is_local)
        if not steps:
            continue
        base = TraceSession(
            session_id=session_id,
            turns=_turns(session_id, steps, row.block_size, seed, tool_cap_s),
            block_scope=scope,
            model=row.model or (row.models[0] if row.models else None),
            source=row.source or "kv-cache-tester",
        )
        yield checked(base, path, line)
        for agent in row.requests if include_subagents else ():
            if agent.type != "subagent" or not agent.requests:
                continue
            child_id = f"{session_id}/{agent.agent_id}"
            child = TraceSession(
                session_id=child_id,
                arrival_s=max(0.0, agent.t),
                parent=session_id,
                turns=_turns(
                    child_id,
                    _raw_steps(agent.requests, is_local),
                    row.block_size,
                    seed,
                    tool_cap_s,
                ),
                block_scope=scope,
                model=agent.requests[0].model,
                source=base.source,
            )
            yield checked(child, path, line)


def _replay_step(turn: _ReplayTurn) -> _Step:
    return _Step(turn.num_input, turn.num_output, turn.runs, turn.kind, turn.gap_s or 0.0)


def _raw_steps(requests: Sequence[_Request], is_local: bool) -> list[_Step]:
    """Merge twins and turn times into gaps: next start minus this end, both by the client."""
    steps: list[_Step] = []
    end_s: float | None = None
    streaming: _Request | None = None
    for request in requests:
        if request.type == "s":
            if streaming is not None:
                steps.append(_step(streaming, streaming, end_s))
                end_s = streaming.t + streaming.api_time
            streaming = request
        elif request.type == "n" and request.num_input:
            if streaming is not None and streaming.num_input != request.num_input:
                steps.append(_step(streaming, streaming, end_s))
                end_s = streaming.t + streaming.api_time
                streaming = None
            steps.append(_step(streaming or request, request, end_s, is_local))
            end_s = request.t + request.api_time
            streaming = None
    if streaming is not None:
        steps.append(_step(streaming, streaming, end_s))
    return steps


def _step(first: _Request, last: _Request, end_s: float | None, is_local: bool = False) -> _Step:
    start_s = first.t
    if is_local and first is last:
        start_s -= first.api_time
    types = {*first.input_types, *last.input_types}
    kind = "tool" if types == {"tool_result"} else "user" if types == {"text"} else "mixed"
    gap_s = 0.0 if end_s is None else start_s - end_s
    return _Step(last.num_input, last.num_output, runs_of(last.hash_ids), kind, gap_s)


def _turns(
    session_id: str, steps: Sequence[_Step], block_size: int, seed: int, tool_cap_s: float
) -> tuple[TraceTurn, ...]:
    turns: list[TraceTurn] = []
    for index, step in enumerate(steps):
        following = steps[index + 1] if index + 1 < len(steps) else None
        waited_s = max(0.0, following.gap_s) if following else 0.0
        tools = ()
        if following is not None and following.kind != "user":
            rng = call_rng(seed, session_id, index, 0)
            tools = (fill_in("tool", round(min(waited_s, tool_cap_s), 4), rng),)
            waited_s -= tools[0].duration_s
        turns.append(
            TraceTurn(
                prompt_tokens=step.prompt_tokens,
                output_tokens=max(1, step.output_tokens),
                blocks=step.blocks,
                block_size=block_size,
                tools=tools,
                gap_s=round(max(0.0, waited_s), 4),
            )
        )
    return tuple(turns)
