# SPDX-License-Identifier: Apache-2.0
"""Draw sessions from a trace, give them arrivals, and change their length, pace and size."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from mars.traces.arrivals import arrival_times
from mars.traces.errors import TraceError
from mars.traces.schema import TraceSession, TraceTool, TraceTurn, runs_of

COPY_SHIFT = 1 << 40
"""Added to the block ids of a copy, per copy; recorded ids are far smaller."""

Chain = int
"""Hash of a block and all blocks before it, as prefix caches know it."""


def sample(
    sessions: Iterable[TraceSession],
    n: int | None = None,
    *,
    seed: int = 0,
    rate: float | None = None,
    arrivals: str = "poisson",
    max_turns: int | None = None,
    max_gap_s: float | None = None,
    max_tool_s: float | None = None,
    max_prompt_tokens: int | None = None,
    scale_time: float = 1.0,
    scale_tokens: float = 1.0,
) -> list[TraceSession]:
    """Return ``n`` sessions in order of arrival.

    Sessions are drawn without repetition until all are used; further ones are copies, named
    ``ID#2`` and so on, that share with their original what it shares with other sessions, and
    nothing else. Which sessions are drawn depends on ``seed`` and ``n`` only. Sub-agents
    follow the session that started them, at their recorded offset.

    Args:
        sessions: where to draw from.
        n: how many, sub-agents not counted; None: all, in their order.
        seed: of the draw and of the arrivals.
        rate: sessions per second; None: arrivals stay as recorded (copies arrive with their
            original), counted from the first one drawn.
        arrivals: the arrival process (:func:`mars.traces.arrivals.arrival_times`).
        max_turns: cut longer sessions after so many turns.
        max_gap_s: cut longer client gaps (humans pause for hours).
        max_tool_s: cut longer tool calls; CPU seconds shrink in proportion.
        max_prompt_tokens: end a session before the first longer prompt; one that begins so is
            not drawn.
        scale_time: factor on tools, their CPU seconds, and gaps.
        scale_tokens: factor on all token counts; recorded blocks shrink or grow instead, so
            that sharing stays.

    Raises:
        TraceError: a setting makes no sense, or nothing is left to draw from.
    """
    _check(n, max_turns, max_prompt_tokens, scale_time, scale_tokens)
    pool = [_bounded(s, max_turns, max_gap_s, max_tool_s, max_prompt_tokens) for s in sessions]
    pool = [s for s in pool if s.turns or max_prompt_tokens is None]
    known = {s.session_id for s in pool}
    roots = [s for s in pool if s.parent not in known]
    if not roots:
        raise TraceError("there is no session left to draw. Loosen the bounds.", field="sessions")
    drawn = _draw(roots, n, seed)
    drawn = _with_children(drawn, pool, known)
    drawn = _copies_apart(drawn)
    drawn = _arriving(drawn, rate, arrivals, seed)
    return [_scaled(session, scale_time, scale_tokens) for session in drawn]


def _check(
    n: int | None,
    max_turns: int | None,
    max_prompt_tokens: int | None,
    scale_time: float,
    scale_tokens: float,
) -> None:
    limits = {"n": n, "max_turns": max_turns, "max_prompt_tokens": max_prompt_tokens}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise TraceError(f"{value} is too small. Give at least 1.", field=name)
    for name, factor in {"scale_time": scale_time, "scale_tokens": scale_tokens}.items():
        if not factor > 0.0:
            raise TraceError(f"{factor} is not positive. Give a factor above 0.", field=name)


def _bounded(
    session: TraceSession,
    max_turns: int | None,
    max_gap_s: float | None,
    max_tool_s: float | None,
    max_prompt_tokens: int | None,
) -> TraceSession:
    turns = session.turns[:max_turns]
    if max_prompt_tokens is not None:
        too_long = (i for i, t in enumerate(turns) if t.prompt_tokens > max_prompt_tokens)
        turns = turns[: next(too_long, len(turns))]
    if max_gap_s is not None or max_tool_s is not None:
        turns = tuple(_shorter_waits(turn, max_gap_s, max_tool_s) for turn in turns)
    return msgspec.structs.replace(session, turns=turns)


def _shorter_waits(turn: TraceTurn, max_gap_s: float | None, max_tool_s: float | None) -> TraceTurn:
    gap_s = turn.gap_s if max_gap_s is None else min(turn.gap_s, max_gap_s)
    tools = turn.tools
    if max_tool_s is not None:
        tools = tuple(
            _stretched(tool, max_tool_s / tool.duration_s) if tool.duration_s > max_tool_s else tool
            for tool in tools
        )
    return msgspec.structs.replace(turn, gap_s=gap_s, tools=tools)


def _stretched(tool: TraceTool, factor: float) -> TraceTool:
    return msgspec.structs.replace(
        tool, duration_s=tool.duration_s * factor, cpu_s=tool.cpu_s * factor
    )


def _draw(
    roots: Sequence[TraceSession], n: int | None, seed: int
) -> list[tuple[int, TraceSession]]:
    """Return (copy number from 0, session)."""
    if n is None:
        return [(0, session) for session in roots]
    rng = np.random.default_rng([seed, 0x5E55])
    drawn: list[tuple[int, TraceSession]] = []
    copy = 0
    while len(drawn) < n:
        order = rng.permutation(len(roots))[: n - len(drawn)]
        drawn += [(copy, roots[i]) for i in order]
        copy += 1
    return drawn


def _with_children(
    drawn: Sequence[tuple[int, TraceSession]], pool: Sequence[TraceSession], known: set[str]
) -> list[tuple[int, TraceSession]]:
    children: dict[str, list[TraceSession]] = defaultdict(list)
    for session in pool:
        if session.parent in known:
            children[session.parent or ""].append(session)
    family: list[tuple[int, TraceSession]] = []
    waiting = list(reversed(drawn))
    while waiting:
        copy, session = waiting.pop()
        family.append((copy, session))
        waiting += [(copy, child) for child in reversed(children[session.session_id])]
    return family


def _copies_apart(drawn: Sequence[tuple[int, TraceSession]]) -> list[TraceSession]:
    if not any(copy for copy, _ in drawn):
        return [session for _, session in drawn]
    originals = {session.session_id: session for copy, session in drawn if not copy}
    users: Counter[Chain] = Counter()
    for session in originals.values():
        users.update({chain for turn in session.turns for chain in _chains(session, turn)})
    return [_copy(session, copy, users) if copy else session for copy, session in drawn]


def _blocks(turn: TraceTurn) -> Iterator[int]:
    for first, count in turn.blocks or ():
        yield from range(first, first + count)


def _chains(session: TraceSession, turn: TraceTurn) -> Iterator[Chain]:
    chain = hash((session.block_scope, turn.block_size))
    for block in _blocks(turn):
        chain = hash((chain, block))
        yield chain


def _copy(session: TraceSession, copy: int, users: Counter[Chain]) -> TraceSession:
    suffix = f"#{copy + 1}"
    turns = tuple(
        msgspec.structs.replace(turn, blocks=_own_blocks(session, turn, copy, users))
        if turn.blocks
        else turn
        for turn in session.turns
    )
    parent = f"{session.parent}{suffix}" if session.parent else None
    return msgspec.structs.replace(
        session, session_id=session.session_id + suffix, parent=parent, turns=turns
    )


def _own_blocks(
    session: TraceSession, turn: TraceTurn, copy: int, users: Counter[Chain]
) -> tuple[tuple[int, int], ...]:
    """Rename every block that follows what only this session has: it is own content there."""
    return runs_of(
        [
            block if users[chain] > 1 else block + copy * COPY_SHIFT
            for block, chain in zip(_blocks(turn), _chains(session, turn), strict=True)
        ]
    )


def _arriving(
    drawn: Sequence[TraceSession], rate: float | None, process: str, seed: int
) -> list[TraceSession]:
    recorded = {session.session_id: session.arrival_s for session in drawn}
    roots = [session for session in drawn if session.parent not in recorded]
    if rate is None and process != "together":
        start = min(session.arrival_s for session in roots)
        times = [session.arrival_s - start for session in roots]
    else:
        times = arrival_times(len(roots), rate or 0.0, process, seed=seed).tolist()
    new_times = {s.session_id: t for s, t in zip(roots, times, strict=True)}
    arriving: list[TraceSession] = []
    for session in drawn:
        time = new_times.get(session.session_id)
        if time is None:
            # Parents stand before their children.
            parent = session.parent or ""
            time = new_times[parent] + max(0.0, session.arrival_s - recorded[parent])
            new_times[session.session_id] = time
        arriving.append(msgspec.structs.replace(session, arrival_s=time))
    return sorted(arriving, key=lambda session: session.arrival_s)


def _scaled(session: TraceSession, scale_time: float, scale_tokens: float) -> TraceSession:
    if scale_time == 1.0 and scale_tokens == 1.0:
        return session
    turns = tuple(_scaled_turn(turn, scale_time, scale_tokens) for turn in session.turns)
    return msgspec.structs.replace(session, turns=turns)


def _scaled_turn(turn: TraceTurn, scale_time: float, scale_tokens: float) -> TraceTurn:
    block_size = turn.block_size
    factor = scale_tokens
    if turn.blocks:
        block_size = max(1, round(turn.block_size * scale_tokens))
        factor = block_size / turn.block_size
    prompt_tokens = max(1, round(turn.prompt_tokens * factor))
    shared = turn.shared_prefix
    return msgspec.structs.replace(
        turn,
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, round(turn.output_tokens * factor)),
        reused_tokens=None if turn.reused_tokens is None else round(turn.reused_tokens * factor),
        shared_prefix=shared and (shared[0], min(prompt_tokens, round(shared[1] * factor))),
        block_size=block_size,
        text=turn.text if scale_tokens == 1.0 else None,
        tools=tuple(_stretched(tool, scale_time) for tool in turn.tools),
        gap_s=turn.gap_s * scale_time,
    )
