# SPDX-License-Identifier: Apache-2.0
"""The whole explanation of a session, and the list of all sessions of a log."""

from __future__ import annotations

import msgspec

from mars.telemetry.explain.account import Cause, Life
from mars.telemetry.explain.decisions import Decision, decisions, summary
from mars.telemetry.explain.log import RunLog
from mars.telemetry.explain.moments import Moment, moments
from mars.telemetry.explain.words import count, seconds, share

SCHEMA = "mars.explain/1"


class Part(msgspec.Struct, frozen=True):
    """Time spent on one cause; ``share`` of the completion time, 0..1."""

    cause: str
    seconds: float
    share: float


class TurnLine(msgspec.Struct, frozen=True):
    """One turn with the tools and gap after it; ``seconds`` by cause sum to ``total_s``."""

    turn_index: int
    at_s: float
    total_s: float
    seconds: dict[str, float]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_recomputed_tokens: int
    num_output_tokens: int
    num_preemptions: int


class SessionLine(msgspec.Struct, frozen=True):
    """One session in the list of a log."""

    session_id: str
    generation: int
    completion_s: float
    is_complete: bool
    dominant_cause: str
    dominant_share: float
    num_turns: int
    num_recomputed_tokens: int
    num_preemptions: int


class Explanation(msgspec.Struct, frozen=True):
    """Where a session's time went; ``parts`` sum to ``completion_s``."""

    schema: str
    session_id: str
    generation: int
    completion_s: float
    is_complete: bool
    headline: str
    notes: list[str]
    parts: list[Part]
    turns: list[TurnLine]
    moments: list[Moment]
    decision_counts: list[str]
    decisions: list[Decision]


def explain(log: RunLog, session_id: str, generation: int | None = None) -> Explanation:
    """Explain one session; its last life unless ``generation`` says which.

    Raises:
        UnknownSessionError: the log has none of that id; names the nearest.
    """
    life = Life(log, log.view(session_id, generation))
    all_decisions = decisions(life)
    return Explanation(
        schema=SCHEMA,
        session_id=session_id,
        generation=life.view.generation,
        completion_s=life.completion_s,
        is_complete=life.is_complete,
        headline=_headline(life),
        notes=_notes(life),
        parts=_parts(life),
        turns=_turns(life),
        moments=moments(life),
        decision_counts=summary(all_decisions),
        decisions=all_decisions,
    )


def list_sessions(log: RunLog) -> list[SessionLine]:
    """All sessions of a log, the longest first."""
    lines: list[SessionLine] = []
    for view in log.views:
        life = Life(log, view)
        top = max(_parts(life), key=lambda part: part.seconds, default=None)
        lines.append(
            SessionLine(
                session_id=view.session_id,
                generation=view.generation,
                completion_s=life.completion_s,
                is_complete=life.is_complete,
                dominant_cause=top.cause if top else "nothing",
                dominant_share=top.share if top else 0.0,
                num_turns=len(life.turns),
                num_recomputed_tokens=sum(t.num_recomputed_tokens for t in life.turns),
                num_preemptions=sum(len(t.preempted) for t in life.turns),
            )
        )
    return sorted(lines, key=lambda line: (-line.completion_s, line.session_id))


def _parts(life: Life) -> list[Part]:
    total = life.completion_s
    return [
        Part(cause.value, spent_s, spent_s / total if total > 0 else 0.0)
        for cause, spent_s in life.seconds().items()
    ]


def _headline(life: Life) -> str:
    total = life.completion_s
    ending = "took" if life.is_complete else "has taken"
    ordered = sorted(_parts(life), key=lambda part: -part.seconds)
    shares = ", ".join(f"{part.cause} {share(part.seconds, total)}" for part in ordered)
    start = (
        f"{life.view.session_id} {ending} {seconds(total)} over {count(len(life.turns), 'turn')}"
    )
    return f"{start}: {shares}" if shares else start


def _notes(life: Life) -> list[str]:
    view, log, notes = life.view, life.log, list[str]()
    if not life.is_complete:
        notes.append("The log does not see this session end.")
    elif view.end_reason not in ("explicit", "final_answer", None):
        notes.append(f"It ended because it was {view.end_reason}.")
    if life.idle_tail_s > 0:
        tail = f"Not counted: {seconds(life.idle_tail_s)} at the end in which it asked for nothing"
        notes.append(tail + (", until it was given up." if life.is_complete else "."))
    lives = len(log.lives_of[view.session_id])
    if lives > 1:
        notes.append(f"This is life {view.generation} of {lives}; --generation shows another.")
    if log.num_dropped:
        notes.append(f"{count(log.num_dropped, 'event')} of the log were lost: read with care.")
    if any(turn.preempted and not turn.resumed for turn in life.turns):
        notes.append(
            "The log does not say when preempted turns ran again; their wait counts as prefill "
            "or decode."
        )
    if any(part.cause == Cause.RECOMPUTE for part in _parts(life)):
        notes.append("Prefill is split into new and repeated by tokens.")
    return notes


def _turns(life: Life) -> list[TurnLine]:
    lines: list[TurnLine] = []
    for position, turn in enumerate(life.turns):
        mine = [stretch for stretch in life.stretches if stretch.turn == position]
        spent: dict[str, float] = {}
        for stretch in mine:
            spent[stretch.cause] = spent.get(stretch.cause, 0.0) + stretch.duration_s
        lines.append(
            TurnLine(
                turn_index=turn.turn_index,
                at_s=(mine[0].start if mine else turn.submitted_at) - life.start,
                total_s=sum(spent.values()),
                seconds={str(cause): spent_s for cause, spent_s in spent.items()},
                num_prompt_tokens=turn.num_prompt_tokens,
                num_cached_tokens=turn.num_cached_tokens,
                num_recomputed_tokens=turn.num_recomputed_tokens,
                num_output_tokens=turn.num_output_tokens,
                num_preemptions=len(turn.preempted),
            )
        )
    return lines
