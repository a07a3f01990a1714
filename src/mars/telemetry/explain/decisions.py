# SPDX-License-Identifier: Apache-2.0
"""What was decided about a session inside the engine, with the inputs of each decision."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from mars.core import events as ev
from mars.telemetry.explain.account import Life, waits
from mars.telemetry.explain.log import RunLog, TurnFacts
from mars.telemetry.explain.words import count, price, seconds, sentence, tally

_LEVELS = {
    "arrival": "its new turn has so much to prefill",
    "cache": "more or less of its prompt was cached than believed",
    "ageing": "it had waited",
    "quantum": "it used up its share of a step",
    "progress": "less is left to prefill",
    "decode": "its prefill is done",
    "preempted": "preempted turns wait in front",
    "resumed": "it runs again and has its prefill to do",
}

_RELEASES = {
    "returned": "its next turn came and used them",
    "expired": "keeping them paid no longer",
    "pressure": "memory was short",
    "bound": "it had been held as long as retention.max_hold_s allows",
    "ended": "the session ended",
    "aborted": "its client went away",
    "reset": "the prefix cache was reset",
}


class Decision(msgspec.Struct, frozen=True):
    """One decision: seconds after arrival, what, in words, and the events it comes from."""

    at_s: float
    kind: str
    text: str
    inputs: list[dict[str, Any]]

    @property
    def is_routine(self) -> bool:
        """Whether it is one of the many that cost nobody anything."""
        return self.kind == "level" or (self.kind == "retention" and _outcome(self) == "hit")


def decisions(life: Life) -> list[Decision]:
    """All of a session, in order of time."""
    out: list[Decision] = []
    retained: ev.KvRetained | None = None
    for event in life.events:
        match event:
            case ev.KvRetained():
                if retained is not None:
                    out.append(_retention(life, retained, None))
                retained = event
            case ev.KvReleased():
                out.append(_retention(life, retained, event))
                retained = None
            case ev.KvEvicted():
                worth = f", worth {price(event.value)} each" if event.value else ""
                text = f"{count(event.num_blocks, 'cached block')} evicted to make room{worth}"
                out.append(_decision(life, "eviction", text, event))
            case ev.ChunkShrunk():
                text = (
                    f"prefill chunk cut from {event.wanted_tokens:,} to "
                    f"{count(event.granted_tokens, 'token')} instead of preempting anyone"
                )
                out.append(_decision(life, "shrunk chunk", text, event))
            case ev.LevelChanged():
                why = _LEVELS.get(event.reason, event.reason)
                text = f"level {event.level_from} to {event.level_to}: {why}"
                out.append(_decision(life, "level", text, event))
            case _:
                pass
    if retained is not None:
        out.append(_retention(life, retained, None))
    for turn in life.turns:
        out += [_preemption(life, turn, lost) for lost in turn.preempted]
    return sorted(out, key=lambda decision: decision.at_s)


def summary(all_of_it: list[Decision]) -> list[str]:
    """One line for each kind of decision."""
    lines: list[str] = []
    kinds = Counter(decision.kind for decision in all_of_it)
    for kind, number in kinds.items():
        mine = [decision for decision in all_of_it if decision.kind == kind]
        if kind == "level":
            detail = tally(d.inputs[0]["reason"] for d in mine)
        elif kind == "retention":
            detail = tally(_outcome(d) for d in mine)
        elif kind == "eviction":
            detail = count(sum(d.inputs[0]["num_blocks"] for d in mine), "block") + " in all"
        elif kind == "preemption":
            detail = count(sum(d.inputs[0]["lost_tokens"] for d in mine), "token") + " lost in all"
        else:
            kept_back = sum(
                d.inputs[0]["wanted_tokens"] - d.inputs[0]["granted_tokens"] for d in mine
            )
            detail = count(kept_back, "token") + " put off in all"
        plural = {"level": "level change"}.get(kind, kind)
        lines.append(f"{count(number, plural)}: {detail}")
    return lines


def release_reason(reason: str) -> str:
    """Why held KV was let go, in words."""
    return _RELEASES.get(reason, reason)


def victim_of(log: RunLog, turn: TurnFacts, lost: ev.TurnPreempted) -> str:
    """Beside whom a turn was preempted."""
    running = sum(
        1
        for other in log.turns
        if other.started_at is not None
        and other is not turn
        and other.started_at <= lost.time
        and (other.finished_at is None or other.finished_at > lost.time)
    )
    return f"last in order among {count(running + 1, 'running turn')}"


def _outcome(decision: Decision) -> str:
    last = decision.inputs[-1]
    if last["kind"] == ev.KvRetained.kind:
        return "still held"
    return "hit" if last["reason"] == "returned" else str(last["reason"])


def _retention(
    life: Life, retained: ev.KvRetained | None, released: ev.KvReleased | None
) -> Decision:
    if released is None:
        assert retained is not None
        text = (
            f"kept {count(retained.num_blocks, 'block')}, worth {price(retained.value)} each; "
            "still held when the log ends"
        )
        return _decision(life, "retention", text, retained)
    verdict = "hit" if released.reason == "returned" else "released"
    text = (
        f"kept {count(released.num_blocks, 'block')}"
        + (f", worth {price(retained.value)} each," if retained else "")
        + f" for {seconds(released.held_s)}; {verdict}: {release_reason(released.reason)}"
    )
    inputs = (retained, released) if retained else (released,)
    return _decision(life, "retention", text, *inputs)


def _preemption(life: Life, turn: TurnFacts, lost: ev.TurnPreempted) -> Decision:
    wait = next((end - start for start, end in waits(turn) if start == lost.time), None)
    rank = ", ".join(f"{part:g}" for part in lost.rank)
    text = sentence(
        f"turn {turn.turn_index} lost the KV of {count(lost.lost_tokens, 'token')}, "
        f"{victim_of(life.log, turn, lost)}" + (f" (rank {rank})" if rank else ""),
        f"ran again after {seconds(wait)}" if wait is not None else "",
    )
    return _decision(life, "preemption", text, lost)


def _decision(life: Life, kind: str, text: str, *inputs: ev.SessionEvent) -> Decision:
    return Decision(inputs[0].time - life.start, kind, text, [_fields(event) for event in inputs])


def _fields(event: ev.SessionEvent) -> dict[str, Any]:
    return {"kind": event.kind} | msgspec.to_builtins(event)
