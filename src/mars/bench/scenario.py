# SPDX-License-Identifier: Apache-2.0
"""A scenario file: one workload on one machine, and the policies to compare on it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mars.profiles import Profile, load_profile
from mars.traces.io import read_trace
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, require_turns

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class ScenarioError(ValueError):
    """A scenario cannot be used; the message names the file, the key and the fix."""


class Workload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which recorded sessions, and how much of each.

    Cutting keeps every prompt, reply, tool and gap of the turns it leaves as recorded,
    except that single waits are bounded: nobody waits ten minutes in a demonstration.
    """

    trace: str
    """A ``mars.trace/1`` file, or ``public:NAME``."""
    sessions: Count = 16
    turns: Count | None = None
    """Most turns of a session; None: all."""
    start_context_tokens: Annotated[int, Meta(ge=0)] = 0
    """Begin a session at its first turn with at least this long a prompt."""
    max_context_tokens: Count | None = None
    """Leave out sessions whose chosen turns exceed this."""
    min_turns: Count = 2
    """Leave out sessions that have fewer turns left (never more than ``turns``)."""
    arrival_rate_per_s: Positive = 1.0
    """Sessions arrive as a Poisson process of this rate."""
    max_gap_s: Seconds | None = None
    """Bound on one client wait (a human's, mostly)."""
    max_tool_s: Seconds | None = None
    """Bound on one tool call; its CPU seconds shrink in proportion."""


class Machine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that is modelled."""

    profile: str
    kv_tokens: Count | None = None
    """KV pool; None: what the profile's memory holds."""
    tool_slots: Count = 2
    tool_cpu_list: str | None = None
    """Cores for tools, as in ``2-5,8``, which the engine then keeps off; None: all."""
    time_scale: Positive = 1.0


class Contestant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of the comparison."""

    label: str
    policy: str
    admission: str = "none"
    tool_policy: str = "fifo"


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides a comparison, apart from the machine it is run on."""

    title: str
    workload: Workload
    machine: Machine
    policies: tuple[Contestant, ...]
    seed: int = 1
    vllm_flags: tuple[str, ...] = ()
    """Given to vLLM as they are, under every policy."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How far the workload exceeds the machine, before anything is run.

    ``working_set`` is the sum of the sessions' peak contexts over the KV pool: what all of
    them together would need at once. ``largest`` is the same of the largest session.
    """

    num_sessions: int
    num_turns: int
    num_tools: int
    peak_tokens: int
    kv_tokens: int
    working_set: float
    largest: float
    tool_s: float

    def __str__(self) -> str:
        return (
            f"{self.num_sessions} sessions, {self.num_turns} turns, {self.num_tools} tool calls "
            f"({self.tool_s:.0f} s); peak contexts sum to {self.peak_tokens:,} tokens = "
            f"{self.working_set:.1f}x the KV pool of {self.kv_tokens:,} "
            f"(largest session {self.largest:.0%} of it)"
        )


def load_scenario(path: Path | str) -> Scenario:
    """Read a scenario.

    Raises:
        ScenarioError: no such file, not TOML, an unknown key or a wrong value.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        scenario = msgspec.convert(tree, Scenario)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{path}: {error}") from error
    if not scenario.policies:
        raise ScenarioError(f"{path}: no [[policies]]; name at least one to run")
    return scenario


def choose_sessions(workload: Workload, seed: int) -> list[TraceSession]:
    """The sessions of a workload, cut and with arrivals; same seed, same sessions.

    More than the trace has are copies that share nothing of their own content.

    Raises:
        ScenarioError: no session of the trace fits.
        TraceError: the trace cannot be read.
    """
    cut = [_cut(s, workload) for s in require_turns(read_trace(workload.trace))]
    fitting = [s for s in cut if _fits(s, workload)]
    if not fitting:
        raise ScenarioError(
            f"{workload.trace} has no session that fits this workload; "
            "lower min_turns or start_context_tokens, or raise max_context_tokens"
        )
    return sample(
        fitting,
        workload.sessions,
        seed=seed,
        rate=workload.arrival_rate_per_s,
        max_gap_s=workload.max_gap_s,
        max_tool_s=workload.max_tool_s,
    )


def pressure(sessions: Sequence[TraceSession], kv_tokens: int) -> Pressure:
    """Offline estimate of the memory pressure (no engine needed)."""
    peaks = [max(t.prompt_tokens + t.output_tokens for t in s.turns) for s in sessions]
    tools = [tool for s in sessions for turn in s.turns for tool in turn.tools]
    return Pressure(
        num_sessions=len(sessions),
        num_turns=sum(len(s.turns) for s in sessions),
        num_tools=len(tools),
        peak_tokens=sum(peaks),
        kv_tokens=kv_tokens,
        working_set=sum(peaks) / kv_tokens,
        largest=max(peaks, default=0) / kv_tokens,
        tool_s=sum(t.duration_s for t in tools),
    )


def machine_profile(machine: Machine) -> tuple[Profile, int]:
    """The machine's profile, and its KV pool in tokens.

    Raises:
        ProfileError: no such profile.
    """
    profile = load_profile(machine.profile)
    return profile, machine.kv_tokens or profile.kv_tokens


def _cut(session: TraceSession, workload: Workload) -> TraceSession:
    turns = list(session.turns)
    long_enough = (
        i for i, t in enumerate(turns) if t.prompt_tokens >= workload.start_context_tokens
    )
    first = next(long_enough, len(turns))
    kept = turns[first : first + workload.turns] if workload.turns else turns[first:]
    return msgspec.structs.replace(session, turns=tuple(kept))


def _fits(session: TraceSession, workload: Workload) -> bool:
    if len(session.turns) < min(workload.min_turns, workload.turns or workload.min_turns):
        return False
    largest = max(t.prompt_tokens + t.output_tokens for t in session.turns)
    return workload.max_context_tokens is None or largest <= workload.max_context_tokens
