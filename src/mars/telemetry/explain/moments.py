# SPDX-License-Identifier: Apache-2.0
"""The stretches that cost a session most, each with what the log knows of its reason."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mars.core import events as ev
from mars.telemetry.explain.account import (
    Cause,
    Life,
    Stretch,
    first_recomputed,
    repeated_share,
    waits,
)
from mars.telemetry.explain.decisions import release_reason, victim_of
from mars.telemetry.explain.log import HoldFacts, TurnFacts
from mars.telemetry.explain.words import after, count, price, seconds, sentence, share, tally


class Moment(msgspec.Struct, frozen=True):
    """One stretch, ``at_s`` seconds after arrival, and why it took ``duration_s``."""

    at_s: float
    duration_s: float
    cause: str
    turn_index: int | None
    text: str


def moments(life: Life) -> list[Moment]:
    """All of a session, the most expensive first."""
    groups: dict[tuple[Cause, int], list[Stretch]] = {}
    for stretch in life.stretches:
        # One prefill, of which a part was computed again.
        cause = Cause.PREFILL if stretch.cause is Cause.RECOMPUTE else stretch.cause
        groups.setdefault((cause, stretch.turn), []).append(stretch)
    out = [_moment(life, cause, parts) for (cause, _), parts in groups.items()]
    return sorted(out, key=lambda moment: (-moment.duration_s, moment.at_s))


def _moment(life: Life, cause: Cause, parts: list[Stretch]) -> Moment:
    first = parts[0]
    turn = life.turns[first.turn] if life.turns else None
    return Moment(
        at_s=first.start - life.start,
        duration_s=sum(part.duration_s for part in parts),
        cause="prefill" if cause is Cause.PREFILL else cause.value,
        turn_index=turn.turn_index if turn else None,
        text=_TELL[cause](life, turn, parts),
    )


# --- outside the engine --------------------------------------------------------------
def _held(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    del turn
    start, end = parts[0].start, parts[-1].end
    hold = next((h for h in life.log.holds if h.held in life.events), None)
    if hold is None:
        return "held; the log does not say behind whom"
    others = max(0, hold.held.num_held - 1)
    window = hold.held.window
    return sentence(
        (f"behind {count(others, 'other')}" if others else "nobody was held before it")
        + (f", {count(window, 'session')} allowed in at once" if window >= 0 else ""),
        _moves(life, start, end),
        _let_in_before(life, hold, end),
        f"then let in as {hold.admitted.mode}, {hold.admitted.num_active} active with it"
        if hold.admitted
        else "not let in before the log ends",
    )


def _moves(life: Life, start: float, end: float) -> str:
    """How the window moved meanwhile, and why."""
    moves = [window for window in life.log.windows if start < window.time <= end]
    if not moves:
        return "the window did not move meanwhile"
    values = [move.window for move in moves]
    return (
        f"the window moved {count(len(moves), 'time')} between {min(values):g} and "
        f"{max(values):g} ({tally(move.reason or 'no reason given' for move in moves)})"
    )


def _let_in_before(life: Life, hold: HoldFacts, end: float) -> str:
    since = hold.held.time
    before = [
        other
        for other in life.log.holds
        if other is not hold and other.admitted and since < other.admitted.time <= end
    ]
    later = sum(1 for other in before if other.held.time > since)
    if not before:
        return ""
    came_later = f", {later} of which came after it" if later else ""
    return (
        f"{count(len(before), 'held session was', 'held sessions were')} let in first{came_later}"
    )


# --- inside the engine ---------------------------------------------------------------
def _queue(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    if turn is None or turn.submitted_at >= parts[-1].end:
        return "let in, its request on the way to the engine"
    since, until = turn.submitted_at, turn.started_at or parts[-1].end
    others = [other for other in life.log.turns if other is not turn]
    waiting = running = overtook = 0
    for other in others:
        started, ended = other.started_at, other.finished_at
        if other.submitted_at <= since and (ended is None or ended > since):
            running += started is not None and started <= since
            waiting += started is None or started > since
        elif since < other.submitted_at and started is not None and started < until:
            overtook += 1
    return sentence(
        f"{count(running, 'turn')} ran and {count(waiting, 'other')} waited when it came",
        f"{count(overtook, 'turn')} that came later went first" if overtook else "",
        _level(life, since, until),
        _memory(life, since, until),
        "" if turn.started_at is not None else "not started before the log ends",
    )


def _level(life: Life, start: float, end: float) -> str:
    """At which level it waited, of a policy that has levels."""
    seen = [
        event
        for event in life.decisions(ev.LevelChanged)
        if isinstance(event, ev.LevelChanged) and start <= event.time <= end
    ]
    if not seen or seen[0].reason != "arrival":
        return ""
    aged = [event for event in seen if event.reason == "ageing"]
    lifted = f", until waiting had lifted it to level {aged[-1].level_to}" if aged else ""
    return f"it waited at level {seen[0].level_to}{lifted}"


def _memory(life: Life, start: float, end: float) -> str:
    samples = [s for s in life.log.samples if start <= s.time <= end and s.kv_blocks_total]
    if not samples and (last := life.log.sample_at(start)) and last.kv_blocks_total:
        samples = [last]
    if not samples:
        return ""
    total = sum(sample.kv_blocks_total for sample in samples)
    used = total - sum(sample.kv_blocks_free for sample in samples)
    held = sum(sample.kv_blocks_retained for sample in samples)
    text = f"KV memory {share(used, total)} in use"
    return text + (f", {share(held, total)} held for sessions at their tools" if held else "")


def _prefill(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    if turn is None:
        return "the log does not say of what"
    uncached = turn.num_prompt_tokens - turn.num_cached_tokens
    size = f"{uncached:,} of the {count(turn.num_prompt_tokens, 'token')} of the prompt, the rest "
    size += "was cached"
    if not turn.num_cached_tokens:
        size = f"{count(uncached, 'token')} of prompt, nothing was cached"
    if turn.finished_at is None:
        again = "how much of it again, the log does not say"
    elif part := repeated_share(turn):
        lost = first_recomputed(turn)
        again = sentence(
            f"{share(part, 1.0)} of it computed again",
            f"{count(lost, 'token')} were lost: {_why_lost(life, turn)}" if lost else "",
            "the rest lost to its own preemption" if turn.preempted and not lost else "",
        )
    else:
        again = sentence("all of it new", _kept(life, turn))
    return sentence(
        size,
        again,
        _shrunk(life, turn),
    )


def _shrunk(life: Life, turn: TurnFacts) -> str:
    shrunk = [
        event
        for event in life.decisions(ev.ChunkShrunk)
        if isinstance(event, ev.ChunkShrunk) and event.request_id == turn.request_id
    ]
    if not shrunk:
        return ""
    return f"{count(len(shrunk), 'chunk was', 'chunks were')} cut to what memory had"


def _before(life: Life, turn: TurnFacts) -> tuple[TurnFacts | None, float, float]:
    """The turn before, and the time between the two in which KV can be lost."""
    position = life.turns.index(turn)
    before = life.turns[position - 1] if position else None
    start = before.finished_at if before and before.finished_at is not None else life.start
    return before, start, turn.started_at if turn.started_at is not None else life.end


def _kept(life: Life, turn: TurnFacts) -> str:
    _, start, end = _before(life, turn)
    for event in life.decisions(ev.KvReleased):
        if isinstance(event, ev.KvReleased) and start < event.time <= end:
            blocks = count(event.num_blocks, "block")
            if event.reason == "returned":
                return f"{blocks} kept over the tool call for {seconds(event.held_s)} were hit"
    return ""


def _why_lost(life: Life, turn: TurnFacts) -> str:
    """What became of the KV between the turn before and this one's first step."""
    before, start, end = _before(life, turn)
    if before is None:
        return "no earlier turn of it is in the log"
    between = [e for e in life.decisions(ev.KvReleased, ev.KvEvicted) if start <= e.time <= end]
    said = [
        f"held for {seconds(event.held_s)} until {after(event.time - life.start)}, when "
        f"{release_reason(event.reason)}"
        for event in between
        if isinstance(event, ev.KvReleased) and event.reason != "returned"
    ]
    if evicted := [event for event in between if isinstance(event, ev.KvEvicted)]:
        said.append(_evicted(life, evicted))
    away = f"evicted while it was away for {seconds(end - start)}"
    return ", ".join(said) or f"{away}; nothing held them, and the log does not say when"


def _evicted(life: Life, evicted: list[ev.KvEvicted]) -> str:
    """How many blocks went, when, and at which price."""
    blocks = sum(event.num_blocks for event in evicted)
    first, last = (after(event.time - life.start) for event in (evicted[0], evicted[-1]))
    when = f"at {first}" if first == last else f"from {first} to {last}"
    low, high = (price(pick(event.value for event in evicted)) for pick in (min, max))
    worth = low if low == high else f"{low} to {high}"
    priced = f", worth {worth} each then" if high != "0" else ""
    return f"{count(blocks, 'block')} evicted {when}{priced}"


def _decode(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    if turn is None or turn.finished_at is None:
        return "not finished before the log ends"
    spent_s = sum(part.duration_s for part in parts)
    each_s = spent_s / max(1, turn.num_output_tokens - 1)
    again = sum(
        resumed.num_recomputed_tokens
        for resumed in turn.resumed
        if turn.first_token_at is not None and resumed.time >= turn.first_token_at
    )
    beside = [
        other
        for other in life.log.turns
        if other is not turn
        and other.started_at is not None
        and other.started_at < parts[-1].end
        and (other.finished_at is None or other.finished_at > parts[0].start)
    ]
    prefilled = sum(
        other.num_prompt_tokens - other.num_cached_tokens
        for other in beside
        if other.started_at is not None and other.started_at >= parts[0].start
    )
    return sentence(
        f"{count(turn.num_output_tokens, 'token')}, {seconds(each_s)} each",
        (f"{count(len(beside), 'other turn')} ran at some time" if beside else "nobody else ran")
        + " meanwhile"
        + (f" and prefilled {count(prefilled, 'token')}" if prefilled else ""),
        f"includes computing {count(again, 'token')} again after a preemption" if again else "",
        f"ended by {turn.finish_reason}" if turn.finish_reason not in ("stop", "length") else "",
    )


def _preempted(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    del parts
    if turn is None:
        return "the log does not say why"
    said = [
        f"lost the KV of {count(lost.lost_tokens, 'token')}, {victim_of(life.log, turn, lost)}"
        for lost in turn.preempted
    ]
    again = sum(resumed.num_recomputed_tokens for resumed in turn.resumed)
    start, end = waits(turn)[0]
    return sentence(
        *said[:3],
        f"and {len(said) - 3} times more" if len(said) > 3 else "",
        f"{count(again, 'token')} had to be computed again" if again else "all of it was cached",
        _memory(life, start, end),
    )


# --- tools ---------------------------------------------------------------------------
def _tool_queue(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    del turn
    start, end = parts[0].start, parts[-1].end
    mine = [c for c in life.tools if c.queued_at < end and (c.started_at or end) > start]
    running = queued = 0
    for call in life.log.tools:
        ended = call.finished.time if call.finished else float("inf")
        if call in mine or call.queued_at > start or ended <= start:
            continue
        running += call.started_at is not None and call.started_at <= start
        queued += call.started_at is None or call.started_at > start
    names = ", ".join(dict.fromkeys(call.event.tool_name or "a tool" for call in mine))
    return f"{names} behind {running} running and {count(queued, 'queued call')}"


def _tool(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    del turn
    start, end = parts[0].start, parts[-1].end
    said: list[str] = []
    for call in life.tools:
        if call.started_at is None or not start <= call.started_at < end:
            continue
        name, done = call.event.tool_name or "a tool", call.finished
        if done is None:
            said.append(f"{name} (not finished before the log ends)")
            continue
        ending = "timed out" if done.is_timed_out else f"exit {done.exit_code}"
        said.append(
            f"{name} for {seconds(done.duration_s)} ({seconds(done.cpu_seconds)} of CPU, {ending})"
        )
    if len(said) > 3:
        said[3:] = [f"and {len(said) - 3} more"]
    return "ran " + (", ".join(said) or "a tool")


def _gap(life: Life, turn: TurnFacts | None, parts: list[Stretch]) -> str:
    del turn
    if parts[-1].end >= life.end:
        return "nothing asked of the system until the session ended"
    return "nothing asked of the system: its client, or a tool that nobody reported"


_TELL: dict[Cause, Callable[[Life, TurnFacts | None, list[Stretch]], str]] = {
    Cause.HELD: _held,
    Cause.QUEUE: _queue,
    Cause.PREEMPTED: _preempted,
    Cause.PREFILL: _prefill,
    Cause.DECODE: _decode,
    Cause.TOOL_QUEUE: _tool_queue,
    Cause.TOOL: _tool,
    Cause.GAP: _gap,
}
