# SPDX-License-Identifier: Apache-2.0
"""From the event log of a run: where each session's time went, and the load over time.

All times come out as modelled seconds since the start of the replay.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mars.bench.result import RunTotals, SessionRecord
from mars.core import events as ev
from mars.telemetry.fold import Fold, Phase, fold_events

PHASES = (
    Phase.HELD,
    Phase.QUEUE,
    Phase.PREFILL,
    Phase.DECODE,
    Phase.TOOL_QUEUE,
    Phase.TOOL,
    Phase.IDLE,
)
"""Phases in the order a turn goes through them."""

SHARE_WINDOW_S = 5.0
"""Span (modelled seconds) of the recompute share: a few turns, so that steps that only
decode do not hide the prefills between them (chosen for display)."""

_Clock = Callable[[float], float]

_RECORD_FIELDS = {
    Phase.HELD: "held_s",
    Phase.QUEUE: "queue_s",
    Phase.PREFILL: "prefill_s",
    Phase.DECODE: "decode_s",
    Phase.TOOL_QUEUE: "tool_wait_s",
    Phase.TOOL: "tool_s",
    Phase.IDLE: "gap_s",
}


@dataclass(slots=True, frozen=True)
class Span:
    """A session was in one phase; modelled seconds since the start."""

    phase: Phase
    start_s: float
    end_s: float


@dataclass(slots=True)
class Series:
    """One quantity over time; ``values`` may hold nan where it was not known."""

    times_s: list[float] = field(default_factory=list[float])
    values: list[float] = field(default_factory=list[float])

    def add(self, time_s: float, value: float) -> None:
        """Append one sample."""
        self.times_s.append(time_s)
        self.values.append(value)


@dataclass(slots=True)
class Timeline:
    """What the log of one run says.

    ``kv_used`` and ``kv_retained`` are shares of the pool (0..1); retained is part of used.
    ``window`` is the admission window in sessions (nan: no bound).
    """

    fold: Fold
    spans: dict[str, list[Span]]
    duration_s: float
    kv_used: Series
    kv_retained: Series
    num_running: Series
    num_waiting: Series
    num_held: Series
    num_active: Series
    window: Series
    tools_running: Series
    tools_queued: Series
    preemptions: Series
    """Cumulative preemptions."""
    recompute_share: Series
    """Recomputed over computed tokens of the last ``SHARE_WINDOW_S``."""


def build_timeline(
    events: Iterable[ev.Event], *, started_at: float, time_scale: float = 1.0
) -> Timeline:
    """Fold a log into a timeline.

    Args:
        events: the events of one run. Sources arrive by different ways, so they are put in
            order of time first.
        started_at: monotonic time of the replay's second 0.
        time_scale: dilation of the run.
    """
    ordered = sorted(events, key=lambda event: event.time)
    fold = fold_events(ordered)

    def at(time: float) -> float:
        return (time - started_at) / time_scale

    sessions = [*fold.ended.values(), *fold.sessions.values()]
    spans: dict[str, list[Span]] = {}
    for view in sessions:
        mine = spans.setdefault(view.session_id, [])
        mine += [Span(s.phase, at(s.start), at(s.end)) for s in view.spans]
    line = Timeline(fold, spans, at(fold.time), *(Series() for _ in range(11)))
    _sample_engine(line, fold.engine_samples, at)
    _sample_control(line, ordered, at)
    return line


def _sample_engine(line: Timeline, samples: Iterable[ev.EngineSampled], at: _Clock) -> None:
    recent: deque[tuple[float, ev.EngineSampled]] = deque()
    for sample in samples:
        time_s, total = at(sample.time), sample.kv_blocks_total or 1
        line.kv_used.add(time_s, 1.0 - sample.kv_blocks_free / total)
        line.kv_retained.add(time_s, sample.kv_blocks_retained / total)
        line.num_running.add(time_s, sample.num_running)
        line.num_waiting.add(time_s, sample.num_waiting)
        line.preemptions.add(time_s, sample.preemptions)
        recent.append((time_s, sample))
        while recent[0][0] < time_s - SHARE_WINDOW_S:
            recent.popleft()
        before = recent[0][1]
        computed = sample.computed_tokens - before.computed_tokens
        if computed > 0:
            recomputed = sample.recomputed_tokens - before.recomputed_tokens
            # Repeats are counted when their turn starts, before they are computed.
            line.recompute_share.add(time_s, min(1.0, recomputed / computed))


def _sample_control(line: Timeline, events: Iterable[ev.Event], at: _Clock) -> None:
    held: set[str] = set()
    active: set[str] = set()
    for event in events:
        if isinstance(event, ev.WindowChanged):
            value = event.window if math.isfinite(event.window) else math.nan
            line.window.add(at(event.time), value)
        elif isinstance(event, ev.HostSampled):
            line.tools_running.add(at(event.time), event.tools_running)
            line.tools_queued.add(at(event.time), event.tools_queued)
        elif isinstance(event, ev.SessionHeld):
            held.add(event.session_id)
        elif isinstance(event, ev.SessionPaused):
            active.discard(event.session_id)
        elif isinstance(event, ev.SessionAdmitted | ev.SessionResumed | ev.TurnSubmitted):
            held.discard(event.session_id)
            active.add(event.session_id)
        elif isinstance(event, ev.SessionEnded):
            held.discard(event.session_id)
            active.discard(event.session_id)
        else:
            continue
        line.num_held.add(at(event.time), len(held))
        line.num_active.add(at(event.time), len(active))


def fill_records(records: Sequence[SessionRecord], line: Timeline) -> None:
    """Add to each session what only the engine's side knows (times modelled)."""
    views = {v.session_id: v for v in [*line.fold.ended.values(), *line.fold.sessions.values()]}
    for record in records:
        for span in line.spans.get(record.session_id, []):
            name = _RECORD_FIELDS.get(span.phase)
            if name is not None:
                setattr(record, name, getattr(record, name) + span.end_s - span.start_s)
        view = views.get(record.session_id)
        if view is None:
            continue
        record.cached_tokens = sum(t.num_cached_tokens for t in view.turns)
        record.recomputed_tokens = sum(t.num_recomputed_tokens for t in view.turns)
        record.preemptions = sum(t.num_preemptions for t in view.turns)
        record.computed_tokens = sum(
            t.num_prompt_tokens - t.num_cached_tokens + t.num_output_tokens for t in view.turns
        )
        by_index = {t.turn_index: t for t in view.turns}
        for turn in record.turns:
            if turn.turn_index in by_index:
                turn.cached_tokens = by_index[turn.turn_index].num_cached_tokens


def run_totals(
    line: Timeline | None, *, duration_s: float, time_scale: float, slots: int
) -> RunTotals:
    """Engine counters and utilisation of a whole run.

    Args:
        line: the run's timeline; None leaves all but the duration unknown.
        duration_s: first arrival to last end, modelled.
        time_scale: dilation of the run.
        slots: tool slots; their busy share is what ``cpu_busy`` means here.
    """
    totals = RunTotals(duration_s=duration_s)
    if line is None:
        return totals
    real_s = duration_s * time_scale
    calls = [c for v in (*line.fold.ended.values(), *line.fold.sessions.values()) for c in v.tools]
    tool_s = sum(c.finished_at - c.started_at for c in calls if c.finished_at and c.started_at)
    if real_s > 0 and slots:
        totals.cpu_busy = min(1.0, tool_s / (slots * real_s))
    last = line.fold.engine
    if last is None:
        return totals
    totals.gpu_busy = min(1.0, last.busy_s / real_s) if real_s > 0 else None
    totals.computed_tokens = last.computed_tokens
    totals.recomputed_tokens = last.recomputed_tokens
    totals.prefix_queries_tokens = last.prefix_queries_tokens
    totals.prefix_hits_tokens = last.prefix_hits_tokens
    totals.preemptions = last.preemptions
    return totals
