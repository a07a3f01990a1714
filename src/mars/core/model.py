# SPDX-License-Identifier: Apache-2.0
"""What the policies see: sessions, turns, tool calls and the load of both resources.

All times are monotonic seconds on one clock, all ``*_s`` fields durations in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class SessionState(StrEnum):
    """Where the control plane has a session."""

    HELD = "held"
    ACTIVE = "active"
    ENDED = "ended"


class Activity(StrEnum):
    """What an active session waits for: the model, or one of its tools."""

    REASONING = "reasoning"
    ACTING = "acting"


@dataclass(slots=True)
class ToolCall:
    """One tool call of a session, from the moment it is asked for."""

    tool_call_id: str
    session_id: str
    tool_name: str
    queued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    exit_code: int | None = None


@dataclass(slots=True)
class Session:
    """One agent run: a loop of turns and tool calls under one stable id.

    ``generation`` grows when an ended id is used again, so that a late completion of an
    earlier life can be told apart. ``policy_state`` belongs to the scheduling policy and
    dies with the session, which is what bounds a policy's memory.
    """

    session_id: str
    arrival_time: float
    generation: int = 0
    parent: str | None = None
    state: SessionState = SessionState.ACTIVE
    activity: Activity = Activity.REASONING
    num_turns: int = 0
    context_tokens: int = 0
    """Prompt plus output of the last finished turn: the KV a warm return would find."""
    cached_tokens: int = 0
    """Tokens of ``context_tokens`` whose KV is believed present (retained or cached)."""
    host_tokens: int = 0
    """Of ``context_tokens``, what host memory was offered, where there is one: the prompt's
    blocks, the reply's come with the next prompt. It may have evicted some since."""
    num_computed_tokens: int = 0
    """Tokens computed for this session so far, prefill and decode."""
    attained_service_s: float = 0.0
    """Sum of the engine steps in which one of its turns was served."""
    last_service_time: float | None = None
    last_turn_finished_at: float | None = None
    num_open_turns: int = 0
    has_answered: bool = False
    """Its last reply asked for no tool: it is done, or its human is to speak."""
    tool: ToolCall | None = None
    """The tool call it is blocked on, when known."""
    expected_return_at: float | None = None
    """When the next turn is expected, if the control plane said so."""
    epoch: int = 0
    """Grows when the client compacts: the KV of earlier epochs is never asked for again."""
    gives_kv: bool = False
    """What is cached of it is evicted first, until its next turn ends: it is paused, or its
    client compacted."""
    is_pausing: bool = False
    """To be paused at its next turn boundary (:mod:`mars.core.pauses`)."""
    paused_s: float = 0.0
    """Seconds it was paused for, in all; bounded."""
    num_turns_at_resume: int = 0
    """Turns it had begun when it was last admitted or resumed."""
    tenant: str = "default"
    weight: float = 1.0
    policy_state: Any = None
    engine_state: Any = None
    """Belongs to the engine adapter, as ``policy_state`` does to the policy."""


@dataclass(slots=True)
class Turn:
    """One LLM request of a session, while the engine has it."""

    request_id: str
    session: Session
    turn_index: int
    arrival_time: float
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """Prefix-cache hit when first scheduled; before that an estimate."""
    num_host_tokens: int | None = None
    """Prefix that host memory had when the turn came; None: there is no host memory."""
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_kv_blocks: int = 0
    num_preemptions: int = 0
    num_lost_tokens: int = 0
    """Tokens that were computed when it was last preempted."""
    num_recomputed_tokens: int = 0
    priority: int = 0
    """What the client stamped on the request; lower is sooner, as in vLLM."""
    level: int = 0
    """Last level told, of a policy that has levels."""
    is_running: bool = False
    is_loading: bool = False
    """It waits, and has blocks: they are copied from host memory, or were."""
    is_last_turn: bool | None = None
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_service_time: float | None = None
    policy_state: Any = None

    @property
    def num_tokens(self) -> int:
        """Prompt plus output so far: what a full KV of this turn holds."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_uncached_tokens(self) -> int:
        """Prefill still to do (tokens); 0 or 1 once the turn decodes."""
        known = self.num_computed_tokens if self.is_running else self.num_cached_tokens
        return max(0, self.num_tokens - known)

    @property
    def is_prefill(self) -> bool:
        """Whether more than the next token is still to be computed."""
        if self.num_output_tokens == 0:
            return True
        known = self.num_computed_tokens if self.is_running else self.num_cached_tokens
        return self.num_prompt_tokens + self.num_output_tokens - known > 1


class Load(NamedTuple):
    """One sample of both resources. ``None`` means not known, never zero.

    The recompute ratio is recomputed tokens over computed tokens in the sampling
    window; CPU pressure is PSI ``some avg10`` as a fraction (0..1). A tuple, for one is made
    in every step: a frozen dataclass takes four times as long.
    """

    sampled_at: float
    kv_blocks_total: int | None = None
    kv_blocks_free: int | None = None
    kv_blocks_retained: int | None = None
    block_size: int = 16
    host_blocks_total: int | None = None
    """KV blocks that host memory takes; None: it takes none."""
    num_running: int | None = None
    num_waiting: int | None = None
    num_held: int | None = None
    preemptions: int | None = None
    computed_tokens: int | None = None
    recomputed_tokens: int | None = None
    cpu_cores: int | None = None
    cpu_usage: float | None = None
    cpu_pressure: float | None = None
    tool_slots: int | None = None
    tools_running: int | None = None
    tools_queued: int | None = None
    tool_queue_delay_s: float | None = None
    memory_bytes_free: int | None = None

    @property
    def kv_usage(self) -> float | None:
        """Share of KV blocks held by running or retained work, 0..1."""
        if not self.kv_blocks_total or self.kv_blocks_free is None:
            return None
        return 1.0 - self.kv_blocks_free / self.kv_blocks_total

    @property
    def recompute_ratio(self) -> float | None:
        """Recomputed over computed tokens in the sampling window, 0..1."""
        if self.computed_tokens is None or self.recomputed_tokens is None:
            return None
        return self.recomputed_tokens / self.computed_tokens if self.computed_tokens else 0.0


@dataclass(slots=True)
class HeldSession:
    """A session that waits outside the engine, as the admission policy sees it."""

    session: Session
    held_since: float
    num_prompt_tokens: int
    """Tokens of the first prompt: exact where known, else an estimate."""
    projected_tokens: int = 0
    """Projected peak of its context; 0 where the policy makes no projection."""
    deadline: float | None = None
    is_paused: bool = False
    """Was active before, and is paused between two turns."""
    is_waiting: bool = True
    """A request of it waits; a paused session may still be in its tools."""


@dataclass(slots=True)
class ActiveSet:
    """The admitted sessions as the admission policy sees them."""

    sessions: dict[str, Session] = field(default_factory=dict[str, Session])

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def context_tokens(self) -> int:
        """Present working set (tokens) of all active sessions."""
        return sum(s.context_tokens for s in self.sessions.values())
