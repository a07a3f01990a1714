# SPDX-License-Identifier: Apache-2.0
"""The one fold of the stream: events in order -> the state of everything.

Gateway, metrics, dashboard, report and simulator read the same state from it. It is
pure (no clock, no I/O) and, with ``keep_ended`` and ``keep_samples`` set, bounded.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mars.core import events as ev
from mars.telemetry.views import Phase, SessionView, ToolView, TurnView

__all__ = ["Counters", "Fold", "Phase", "SessionView", "ToolView", "TurnView", "fold_events"]


@dataclass(slots=True)
class Counters:
    """Sums over the whole stream; tokens are those of finished turns."""

    num_events: int = 0
    turns_submitted: int = 0
    turns_finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    shrunk_chunks: int = 0
    kv_retained: int = 0
    kv_released: dict[str, int] = field(default_factory=dict[str, int])
    """Released retentions by reason."""
    kv_evicted_blocks: int = 0
    tools_finished: int = 0
    tool_cpu_seconds: float = 0.0
    sessions_arrived: int = 0
    sessions_ended: dict[str, int] = field(default_factory=dict[str, int])
    """Ended sessions by reason."""
    events_dropped: int = 0
    engine_restarts: int = 0

    @property
    def prefix_hit_rate(self) -> float | None:
        """Cached over prompt tokens of finished turns, 0..1; None before the first."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


class Fold:
    """State of the stream so far.

    Args:
        keep_history: keep closed turns, tools and phase spans of each session.
        keep_ended: how many ended sessions to keep (None: all).
        keep_samples: how many load and window samples to keep (None: all).
    """

    def __init__(
        self,
        *,
        keep_history: bool = True,
        keep_ended: int | None = None,
        keep_samples: int | None = None,
    ) -> None:
        self.sessions: dict[str, SessionView] = {}
        """Live sessions by id."""
        self.ended: OrderedDict[tuple[str, int], SessionView] = OrderedDict()
        """Ended sessions by (id, generation), oldest first."""
        self.counters = Counters()
        self.engines: dict[int, ev.EngineSampled] = {}
        """Latest sample of each data-parallel rank."""
        self.host: ev.HostSampled | None = None
        self.window: ev.WindowChanged | None = None
        self.engine_samples: deque[ev.EngineSampled] = deque(maxlen=keep_samples)
        self.host_samples: deque[ev.HostSampled] = deque(maxlen=keep_samples)
        self.windows: deque[ev.WindowChanged] = deque(maxlen=keep_samples)
        self.time = 0.0
        """Time of the latest event."""
        self._keep_history = keep_history
        self._keep_ended = keep_ended
        self._last_life: dict[str, int] = {}

    def apply(self, event: ev.Event) -> None:
        """Take in the next event; kinds without meaning here are only counted."""
        self.counters.num_events += 1
        self.time = max(self.time, event.time)
        step = _STEPS.get(type(event))
        if step is not None:
            step(self, event)

    def forget(self, is_over: Callable[[SessionView], bool]) -> None:
        """Drop live sessions that nobody will end: those that ``is_over`` says so of."""
        for session_id in [view.session_id for view in self.sessions.values() if is_over(view)]:
            del self.sessions[session_id]

    @property
    def engine(self) -> ev.EngineSampled | None:
        """The latest samples of all ranks, added up; None before the first."""
        samples = list(self.engines.values())
        return sum_of_samples(samples) if samples else None

    @property
    def num_held(self) -> int:
        """Sessions held outside the engine."""
        return sum(1 for s in self.sessions.values() if s.held_since is not None)

    @property
    def num_active(self) -> int:
        """Live sessions that are not held."""
        return len(self.sessions) - self.num_held

    @property
    def kv_blocks_retained(self) -> int:
        """KV blocks held for tool-blocked sessions."""
        return sum(s.retained_blocks for s in self.sessions.values())

    # --- sessions --------------------------------------------------------------------
    def _view(self, event: ev.SessionEvent) -> SessionView:
        """The life an event belongs to; a new one if none fits."""
        view = self.sessions.get(event.session_id) or self._ended_view(event.session_id)
        if view is not None and (view.ended_at is None or event.time <= view.ended_at):
            return view
        view = SessionView(event.session_id, event.time, phase_since=event.time)
        view.generation = self._last_life.get(event.session_id, -1) + 1
        self.sessions[event.session_id] = view
        return view

    def _known(self, event: ev.SessionEvent) -> SessionView | None:
        """As :meth:`_view`, for events that never start a life (engine stragglers)."""
        return self.sessions.get(event.session_id) or self._ended_view(event.session_id)

    def _ended_view(self, session_id: str) -> SessionView | None:
        return self.ended.get((session_id, self._last_life.get(session_id, -1)))

    def _move(self, view: SessionView, now: float) -> None:
        view.move(now, self._keep_history)

    def _arrived(self, event: ev.SessionArrived) -> None:
        view = self._view(event)
        view.generation = max(view.generation, event.generation)
        view.tenant, view.parent = event.tenant, event.parent
        view.first_prompt_tokens = event.num_prompt_tokens
        self.counters.sessions_arrived += 1

    def _held(self, event: ev.SessionHeld) -> None:
        view = self._view(event)
        view.held_since = event.time
        self._move(view, event.time)

    def _admitted(self, event: ev.SessionAdmitted) -> None:
        view = self._view(event)
        view.held_since = None
        view.admitted_at = event.time
        view.held_s = event.held_s
        view.is_turn_due = not view.open_turns and view.num_turns == 0
        self._move(view, event.time)

    def _resumed(self, event: ev.SessionResumed) -> None:
        view = self._view(event)
        view.is_turn_due = view.held_since is not None
        view.held_since = None
        self._move(view, event.time)

    def _ended(self, event: ev.SessionEnded) -> None:
        reasons = self.counters.sessions_ended
        reasons[event.reason] = reasons.get(event.reason, 0) + 1
        view = self.sessions.pop(event.session_id, None)
        if view is None:
            return
        view.ended_at, view.end_reason = event.time, event.reason
        view.held_since = None
        self._move(view, event.time)
        view.generation = max(view.generation, event.generation)
        self.ended[(view.session_id, view.generation)] = view
        self._last_life[view.session_id] = view.generation
        while self._keep_ended is not None and len(self.ended) > self._keep_ended:
            (oldest, generation), _ = self.ended.popitem(last=False)
            if self._last_life.get(oldest) == generation:
                del self._last_life[oldest]

    def _carried(self, event: ev.SessionCarried) -> None:
        if event.session_id in self.sessions:
            return
        view = self._view(event)
        view.arrived_at, view.generation = event.arrived_at, event.generation
        view.tenant, view.parent = event.tenant, event.parent
        view.held_since = event.held_since
        view.admitted_at = event.time if event.held_since is None else None
        view.num_turns, view.context_tokens = event.num_turns, event.context_tokens
        view.first_prompt_tokens = event.num_prompt_tokens
        self._move(view, event.time)

    # --- turns -----------------------------------------------------------------------
    def _turn_submitted(self, event: ev.TurnSubmitted) -> None:
        self.counters.turns_submitted += 1
        view = self._view(event)
        turn = TurnView(event.request_id, event.turn_index, event.time, event.num_prompt_tokens)
        view.open_turns[event.request_id] = turn
        view.num_turns += 1
        view.is_turn_due = False
        view.held_since = None
        self._move(view, event.time)

    def _turn_started(self, event: ev.TurnStarted) -> None:
        view = self._known(event)
        turn = view.open_turns.get(event.request_id) if view else None
        if view is not None and turn is not None:
            turn.started_at = event.time
            turn.num_cached_tokens = event.num_cached_tokens
            self._move(view, event.time)

    def _first_token(self, event: ev.FirstToken) -> None:
        view = self._known(event)
        turn = view.open_turns.get(event.request_id) if view else None
        if view is not None and turn is not None:
            turn.first_token_at = event.time
            self._move(view, event.time)

    def _turn_preempted(self, event: ev.TurnPreempted) -> None:
        self.counters.preemptions += 1
        view = self._known(event)
        turn = view.open_turns.get(event.request_id) if view else None
        if turn is not None:
            turn.num_preemptions += 1

    def _turn_finished(self, event: ev.TurnFinished) -> None:
        sums = self.counters
        sums.turns_finished += 1
        sums.prompt_tokens += event.num_prompt_tokens
        sums.output_tokens += event.num_output_tokens
        sums.cached_tokens += event.num_cached_tokens
        sums.recomputed_tokens += event.num_recomputed_tokens
        view = self._known(event)
        turn = view.open_turns.pop(event.request_id, None) if view else None
        if view is None or turn is None:
            return
        turn.finished_at, turn.finish_reason = event.time, event.finish_reason
        turn.num_prompt_tokens = event.num_prompt_tokens
        turn.num_output_tokens = event.num_output_tokens
        turn.num_cached_tokens = event.num_cached_tokens
        turn.num_recomputed_tokens = event.num_recomputed_tokens
        view.context_tokens = event.num_prompt_tokens + event.num_output_tokens
        if self._keep_history:
            view.turns.append(turn)
        self._move(view, event.time)

    # --- memory ----------------------------------------------------------------------
    def _chunk_shrunk(self, event: ev.ChunkShrunk) -> None:
        self.counters.shrunk_chunks += 1

    def _level_changed(self, event: ev.LevelChanged) -> None:
        if view := self._known(event):
            view.level = event.level_to

    def _kv_retained(self, event: ev.KvRetained) -> None:
        self.counters.kv_retained += 1
        if view := self._known(event):
            view.retained_blocks = event.num_blocks

    def _kv_released(self, event: ev.KvReleased) -> None:
        outcomes = self.counters.kv_released
        outcomes[event.reason] = outcomes.get(event.reason, 0) + 1
        if view := self._known(event):
            view.retained_blocks = 0

    def _kv_evicted(self, event: ev.KvEvicted) -> None:
        self.counters.kv_evicted_blocks += event.num_blocks

    # --- tools -----------------------------------------------------------------------
    def _tool_queued(self, event: ev.ToolQueued) -> None:
        view = self._view(event)
        call = ToolView(event.tool_call_id, event.tool_name, event.time)
        view.open_tools[event.tool_call_id] = call
        self._move(view, event.time)

    def _tool_started(self, event: ev.ToolStarted) -> None:
        view = self._view(event)
        call = view.open_tools.get(event.tool_call_id)
        if call is None:
            queued_at = event.time - event.queued_s
            call = ToolView(event.tool_call_id, event.tool_name, queued_at)
            view.open_tools[event.tool_call_id] = call
        call.started_at = event.time
        self._move(view, event.time)

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        self.counters.tools_finished += 1
        self.counters.tool_cpu_seconds += event.cpu_seconds
        view = self._known(event)
        if view is None:
            return
        started_at = event.time - event.duration_s
        call = view.open_tools.pop(event.tool_call_id, None)
        call = call or ToolView(event.tool_call_id, event.tool_name, started_at, started_at)
        call.finished_at, call.exit_code = event.time, event.exit_code
        call.cpu_seconds, call.peak_bytes = event.cpu_seconds, event.peak_bytes
        call.is_timed_out = event.is_timed_out
        if self._keep_history:
            view.tools.append(call)
        self._move(view, event.time)

    # --- loads -----------------------------------------------------------------------
    def _engine_joined(self, event: ev.EngineJoined) -> None:
        """A restarted engine has none of the old one's turns and KV."""
        if not event.is_restart:
            return
        self.counters.engine_restarts += 1
        self.engines.pop(event.engine_rank, None)
        lost = set(event.lost_requests)
        for view in self.sessions.values():
            gone = lost.intersection(view.open_turns)
            for request_id in gone:
                turn = view.open_turns.pop(request_id)
                turn.finished_at, turn.finish_reason = event.time, "engine_lost"
                if self._keep_history:
                    view.turns.append(turn)
            if gone:
                self._move(view, event.time)
        for session_id in event.lost_retentions:
            if view := self.sessions.get(session_id):
                view.retained_blocks = 0

    def _engine_sampled(self, event: ev.EngineSampled) -> None:
        self.engines[event.engine_rank] = event
        self.engine_samples.append(sum_of_samples(list(self.engines.values())))

    def _host_sampled(self, event: ev.HostSampled) -> None:
        self.host = event
        self.host_samples.append(event)

    def _window_changed(self, event: ev.WindowChanged) -> None:
        self.window = event
        self.windows.append(event)

    def _events_dropped(self, event: ev.EventsDropped) -> None:
        self.counters.events_dropped += event.count


_STEPS: dict[type[ev.Event], Callable[[Fold, Any], None]] = {
    cls: getattr(Fold, f"_{kind.removeprefix('session_')}")
    for kind, cls in ev.KINDS.items()
    if hasattr(Fold, f"_{kind.removeprefix('session_')}")
}


_SUMMED = (
    *("kv_blocks_total", "kv_blocks_free", "kv_blocks_retained", "num_running", "num_waiting"),
    *("num_steps", "busy_s", "computed_tokens", "recomputed_tokens", "prefix_queries_tokens"),
    *("prefix_hits_tokens", "preemptions", "shrunk_chunks", "late_s"),
)


def sum_of_samples(samples: list[ev.EngineSampled]) -> ev.EngineSampled:
    """One sample for several ranks, of the newest's time; ``busy_s`` and others add up."""
    if len(samples) == 1:
        return samples[0]
    newest = max(samples, key=lambda sample: sample.time)
    sums = {name: sum(getattr(s, name) for s in samples) for name in _SUMMED}
    return replace(newest, **sums)


def fold_events(events: Iterable[ev.Event], **options: Any) -> Fold:
    """Fold a whole stream, for example ``fold_events(read_events(path))``."""
    fold = Fold(**options)
    for event in events:
        fold.apply(event)
    return fold
