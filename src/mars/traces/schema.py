# SPDX-License-Identifier: Apache-2.0
"""``mars.trace/1``: one recorded or synthetic agent session per line.

Unknown keys pass; wrong types and impossible values are a :class:`TraceError` that names the
field and the fix. Lengths are tokens, times seconds, all counted from the start of the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mars.traces.errors import TraceError

SCHEMA = "mars.trace/1"

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1)]


class TraceTool(Struct, frozen=True, kw_only=True):
    """One tool call: how long it ran alone, and what it needed of the machine.

    The calls of a turn run one after the other, in order.

    Attributes:
        name: the class of the tool ("test", "read", "install"), what estimators learn on.
        duration_s: wall seconds when nothing else competes.
        cpu_s: CPU seconds of its whole process tree; may exceed ``duration_s`` on many cores.
        peak_bytes: peak resident memory of its process tree; 0 where unknown.
        command: what was run, where the recording has it; shown, never executed.
    """

    name: Name
    duration_s: Seconds
    cpu_s: Seconds = 0.0
    peak_bytes: Count = 0
    command: str | None = None


class TraceTurn(Struct, frozen=True, kw_only=True):
    """One LLM request of a session, the tools it asked for, and the wait before the next.

    Attributes:
        prompt_tokens: length of the whole prompt.
        output_tokens: length of the reply.
        reused_tokens: length of the prefix shared with the previous turn's prompt plus output;
            None: all of it. Bounded by ``prompt_tokens``.
        shared_prefix: (name, tokens): a prefix common to every session that names it.
        blocks: recorded block ids as runs (first, count); they replace the two fields above.
        block_size: tokens per recorded block.
        text: the recorded reply, for engines that replay it word for word.
        tools: the tool calls that follow the reply.
        gap_s: client time after the tools until the next turn (a human, or the harness).
    """

    prompt_tokens: Positive
    output_tokens: Positive
    reused_tokens: Count | None = None
    shared_prefix: tuple[Name, Count] | None = None
    blocks: tuple[tuple[Count, Count], ...] | None = None
    block_size: Positive = 64
    text: str | None = None
    tools: tuple[TraceTool, ...] = ()
    gap_s: Seconds = 0.0


class TraceSession(Struct, frozen=True, kw_only=True, weakref=True):
    """One agent run. A line of a file also carries ``"schema": "mars.trace/1"``.

    Attributes:
        session_id: unique within a trace; the content of the session hangs on it.
        arrival_s: when its first turn is submitted, from the start of the trace.
        tenant: who it belongs to, for fairness.
        parent: the session that started this one (a sub-agent's parent).
        turns: its LLM requests in order; empty for a task that is only described.
        block_scope: sessions of equal scope share the content of equal block ids.
        model: the recorded model.
        task: name of the task it works on.
        source: where the recording comes from.
        live: a task description for live runs (the payload of ``mas_task_v1``).
    """

    session_id: Name
    arrival_s: Seconds = 0.0
    tenant: str = "default"
    parent: str | None = None
    turns: tuple[TraceTurn, ...] = ()
    block_scope: str = ""
    model: str | None = None
    task: str | None = None
    source: str | None = None
    live: dict[str, Any] | None = None


class _Line(TraceSession, frozen=True, kw_only=True):
    schema: Literal["mars.trace/1"]


_DECODER = msgspec.json.Decoder(_Line)
_DEFAULTS: dict[type[Struct], dict[str, Any]] = {
    record: {field.encode_name: field.default for field in msgspec.structs.fields(record)}
    for record in (TraceSession, TraceTurn, TraceTool)
}
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]+)`)?$", re.DOTALL)


def _field_of(path: str | None) -> str:
    return (path or "").removeprefix("$").removeprefix(".")


def explain(error: msgspec.MsgspecError) -> TraceError:
    """Turn msgspec's message into field, problem and fix."""
    found = _PATH.match(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), None)
    if not isinstance(error, msgspec.ValidationError):
        return TraceError(f"{what}. Each line must be one complete JSON object.")
    if "missing required field" in what:
        return TraceError(f"{what}. Add the field.", field=_field_of(path))
    return TraceError(f"{what}. Correct the value.", field=_field_of(path))


def decode_session(line: bytes | str) -> TraceSession:
    """Read one line.

    Raises:
        TraceError: it is not JSON, has a wrong type, or contradicts itself.
    """
    try:
        record = _DECODER.decode(line)
    except msgspec.MsgspecError as error:
        raise explain(error) from None
    session = TraceSession(**{name: getattr(record, name) for name in _DEFAULTS[TraceSession]})
    check_session(session)
    return session


def encode_session(session: TraceSession) -> bytes:
    """Write one line, without the line end; fields at their default are left out."""
    turns = [
        _sparse(turn) | ({"tools": [_sparse(tool) for tool in turn.tools]} if turn.tools else {})
        for turn in session.turns
    ]
    line = {"schema": SCHEMA} | _sparse(session) | ({"turns": turns} if turns else {})
    return msgspec.json.encode(line)


def _sparse(record: Struct) -> dict[str, Any]:
    """Return the fields that differ from their default, so that equal records are equal bytes."""
    values = (
        (name, getattr(record, name), default) for name, default in _DEFAULTS[type(record)].items()
    )
    return {name: value for name, value, default in values if value != default}


def runs_of(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return block ids as runs (first, count) of consecutive ids."""
    runs: list[tuple[int, int]] = []
    for block in ids:
        if runs and sum(runs[-1]) == block:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((block, 1))
    return tuple(runs)


def check_session(session: TraceSession) -> None:
    """Check what types alone cannot say.

    Raises:
        TraceError: a prefix or its blocks are longer than the prompt they belong to.
    """
    for index, turn in enumerate(session.turns):
        prefix = turn.shared_prefix
        if prefix is not None and prefix[1] > turn.prompt_tokens:
            raise TraceError(
                f"{prefix[1]} tokens do not fit into a prompt of {turn.prompt_tokens}. "
                "Lower the prefix or raise prompt_tokens.",
                field=f"turns[{index}].shared_prefix",
            )
        num_blocks = sum(count for _, count in turn.blocks or ())
        if (num_blocks - 1) * turn.block_size >= turn.prompt_tokens:
            raise TraceError(
                f"{num_blocks} blocks of {turn.block_size} tokens exceed a prompt of "
                f"{turn.prompt_tokens}. Correct blocks, block_size or prompt_tokens.",
                field=f"turns[{index}].blocks",
            )


def require_turns(sessions: Iterable[TraceSession]) -> Iterator[TraceSession]:
    """Pass sessions on, for whoever replays recorded turns.

    Raises:
        TraceError: a session has no turns (it describes a task for a live agent).
    """
    for session in sessions:
        if not session.turns:
            raise TraceError(
                f"session {session.session_id!r} has no recorded turns. Tasks without turns need "
                "a live agent; for replay give a trace with turns (public:swe-agent).",
                field="turns",
            )
        yield session
