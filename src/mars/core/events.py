# SPDX-License-Identifier: Apache-2.0
"""The unified information stream: one frozen record per state change on either side.

Every event carries ``time`` (monotonic seconds of the emitting host) and, where it
concerns one, ``session_id``. ``KINDS`` maps the wire name (``kind``) to the class; the
codec in :mod:`mars.telemetry` adds the envelope (sequence number, source).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True, frozen=True, kw_only=True)
class Event:
    """Base of all records."""

    kind: ClassVar[str] = "event"
    time: float


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionEvent(Event):
    """Base of all records that concern one session."""

    session_id: str


# --- control plane -------------------------------------------------------------------
@dataclass(slots=True, frozen=True, kw_only=True)
class SessionArrived(SessionEvent):
    """First request of a session seen."""

    kind: ClassVar[str] = "session_arrived"
    generation: int = 0
    tenant: str = "default"
    weight: float = 1.0
    parent: str | None = None
    num_prompt_tokens: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionHeld(SessionEvent):
    """The session waits outside the engine; ``num_held`` includes it."""

    kind: ClassVar[str] = "session_held"
    num_held: int
    window: int


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionAdmitted(SessionEvent):
    """The session may run; ``mode`` is the packing mode that chose it."""

    kind: ClassVar[str] = "session_admitted"
    held_s: float
    mode: str
    num_active: int


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionEnded(SessionEvent):
    """``reason``: explicit, idle, final_answer, single_turn, disconnected or drained."""

    kind: ClassVar[str] = "session_ended"
    generation: int = 0
    reason: str
    num_turns: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionCarried(SessionEvent):
    """The session lives on into a new log file, or past a checkpoint of a long one.

    Restates what earlier records said, for readers that do not have those.
    """

    kind: ClassVar[str] = "session_carried"
    generation: int
    tenant: str
    parent: str | None
    arrived_at: float
    held_since: float | None
    num_turns: int
    num_prompt_tokens: int
    context_tokens: int


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionPaused(SessionEvent):
    """An active session was stopped between two turns; its KV may go."""

    kind: ClassVar[str] = "session_paused"
    context_tokens: int
    num_active: int


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionResumed(SessionEvent):
    """A paused session may go on; ``waited_s``: how long its next request stood waiting."""

    kind: ClassVar[str] = "session_resumed"
    paused_s: float
    waited_s: float
    num_active: int


@dataclass(slots=True, frozen=True, kw_only=True)
class ContextReset(SessionEvent):
    """The client compacted: a new epoch, whose prompt shares ``num_kept_tokens`` with the old.

    ``reason``: window (the client said so), prefix (its prompt begins otherwise) or shrunk.
    """

    kind: ClassVar[str] = "context_reset"
    epoch: int
    num_kept_tokens: int
    reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class WindowChanged(Event):
    """The admission window moved; ``reason`` names the pressure that moved it."""

    kind: ClassVar[str] = "window_changed"
    window: float
    num_active: int
    num_held: int
    is_kv_pressed: bool
    is_cpu_pressed: bool
    reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class SettingsReloaded(Event):
    """Settings were read anew; names of those that differ, never their values."""

    kind: ClassVar[str] = "settings_reloaded"
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


# --- engine --------------------------------------------------------------------------
@dataclass(slots=True, frozen=True, kw_only=True)
class TurnSubmitted(SessionEvent):
    """A turn entered the engine; the projection is prompt plus allowed output."""

    kind: ClassVar[str] = "turn_submitted"
    request_id: str
    turn_index: int
    num_prompt_tokens: int
    projected_kv_blocks: int


@dataclass(slots=True, frozen=True, kw_only=True)
class TurnStarted(SessionEvent):
    """First time scheduled; ``num_cached_tokens`` is its prefix-cache hit."""

    kind: ClassVar[str] = "turn_started"
    request_id: str
    turn_index: int
    num_cached_tokens: int
    queue_s: float


@dataclass(slots=True, frozen=True, kw_only=True)
class FirstToken(SessionEvent):
    """The turn's prefill is done and its first token sampled."""

    kind: ClassVar[str] = "first_token"
    request_id: str
    turn_index: int
    ttft_s: float


@dataclass(slots=True, frozen=True, kw_only=True)
class TurnFinished(SessionEvent):
    """A turn left the engine.

    ``num_recomputed_tokens``: prefill of tokens whose KV existed before (lost to
    eviction between turns, or to preemption).
    """

    kind: ClassVar[str] = "turn_finished"
    request_id: str
    turn_index: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_recomputed_tokens: int
    num_preemptions: int
    freed_blocks: int
    retained_blocks: int
    finish_reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class TurnPreempted(SessionEvent):
    """A running turn lost its KV; ``lost_tokens`` must be computed again."""

    kind: ClassVar[str] = "turn_preempted"
    request_id: str
    lost_tokens: int
    rank: tuple[float, ...] = ()


@dataclass(slots=True, frozen=True, kw_only=True)
class TurnResumed(SessionEvent):
    """A preempted turn runs again; the recomputed tokens are those not found in the cache."""

    kind: ClassVar[str] = "turn_resumed"
    request_id: str
    num_cached_tokens: int
    num_recomputed_tokens: int


@dataclass(slots=True, frozen=True, kw_only=True)
class ChunkShrunk(SessionEvent):
    """A prefill chunk was cut to what memory had, instead of preempting."""

    kind: ClassVar[str] = "chunk_shrunk"
    request_id: str
    wanted_tokens: int
    granted_tokens: int


@dataclass(slots=True, frozen=True, kw_only=True)
class LevelChanged(SessionEvent):
    """The session moved between levels (0 is served first).

    ``reason``: arrival (a turn came, with so much to prefill), cache (more or less of it
    was cached than believed), ageing (lifted by waiting; told when it is served at last),
    quantum (used up its share of a step, or its waiting counts no more), progress (less is
    left to prefill), decode (prefill done), preempted or resumed.
    """

    kind: ClassVar[str] = "level_changed"
    level_from: int
    level_to: int
    reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class KvRetained(SessionEvent):
    """KV of a tool-blocked session is held; ``value`` is the policy's price."""

    kind: ClassVar[str] = "kv_retained"
    num_blocks: int
    value: float


@dataclass(slots=True, frozen=True, kw_only=True)
class KvReleased(SessionEvent):
    """``reason``: returned, expired, pressure, bound, ended, aborted or reset."""

    kind: ClassVar[str] = "kv_released"
    num_blocks: int
    held_s: float
    reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class KvEvicted(SessionEvent):
    """Cached blocks of a live session were given to somebody else this step.

    ``value`` is the policy's price of a block; plain LRU does not look at it.
    """

    kind: ClassVar[str] = "kv_evicted"
    num_blocks: int
    value: float


@dataclass(slots=True, frozen=True, kw_only=True)
class EngineSampled(Event):
    """Load of the engine; counters are cumulative since its start."""

    kind: ClassVar[str] = "engine_sampled"
    kv_blocks_total: int
    kv_blocks_free: int
    kv_blocks_retained: int
    block_size: int
    num_running: int
    num_waiting: int
    num_steps: int
    busy_s: float
    computed_tokens: int
    recomputed_tokens: int
    prefix_queries_tokens: int
    prefix_hits_tokens: int
    preemptions: int
    shrunk_chunks: int
    late_s: float = 0.0
    """Emulated engine only: how far real time fell behind the model, in all."""
    engine_rank: int = 0
    """Data-parallel rank; each has a scheduler and a KV pool of its own."""


@dataclass(slots=True, frozen=True, kw_only=True)
class HostKvSampled(Event):
    """Host memory behind the engine's KV pool; told beside its load, where there is some."""

    kind: ClassVar[str] = "host_kv_sampled"
    num_blocks: int
    """Of the size of the pool's."""
    engine_rank: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class EngineJoined(Event):
    """The control plane hears an engine process; what follows of it begins at ``first_seq``.

    ``instance`` is new with each start of the engine. After a restart, the turns that the
    old process had open and the KV it held are gone with it. Repeated as a mark in long logs.
    """

    kind: ClassVar[str] = "engine_joined"
    instance: str
    engine_rank: int
    first_seq: int
    is_restart: bool
    lost_requests: tuple[str, ...] = ()
    lost_retentions: tuple[str, ...] = ()


# --- host and tools ------------------------------------------------------------------
@dataclass(slots=True, frozen=True, kw_only=True)
class ToolQueued(SessionEvent):
    """A tool call was asked for and waits for a slot."""

    kind: ClassVar[str] = "tool_queued"
    tool_call_id: str
    tool_name: str


@dataclass(slots=True, frozen=True, kw_only=True)
class ToolStarted(SessionEvent):
    """The tool's process runs."""

    kind: ClassVar[str] = "tool_started"
    tool_call_id: str
    tool_name: str
    queued_s: float


@dataclass(slots=True, frozen=True, kw_only=True)
class ToolFinished(SessionEvent):
    """The tool's process group is gone; ``exit_code`` < 0 is the signal."""

    kind: ClassVar[str] = "tool_finished"
    tool_call_id: str
    tool_name: str
    duration_s: float
    cpu_seconds: float
    peak_bytes: int
    exit_code: int
    is_timed_out: bool = False


@dataclass(slots=True, frozen=True, kw_only=True)
class HostSampled(Event):
    """Load of the host and its tool pool."""

    kind: ClassVar[str] = "host_sampled"
    cpu_cores: int
    cpu_usage: float | None
    cpu_pressure: float | None
    tool_slots: int
    tools_running: int
    tools_queued: int
    tool_queue_delay_s: float
    memory_bytes_free: int | None = None


# --- the stream itself ---------------------------------------------------------------
@dataclass(slots=True, frozen=True, kw_only=True)
class EventsDropped(Event):
    """The reader was too slow, or a sequence gap was seen: ``count`` records lost."""

    kind: ClassVar[str] = "events_dropped"
    count: int
    source: str


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Event) and cls not in (Event, SessionEvent)
}
"""Wire name of each record -> its class."""
