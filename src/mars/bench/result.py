# SPDX-License-Identifier: Apache-2.0
"""``mars.result/1``: what one experiment gives, from virtual time and from real time alike.

All ``*_s`` fields are modelled seconds: a replay dilated by ``time_scale`` divides what it
measured by that factor, so that results of both worlds compare. A value that could not be
measured is null, never zero. The same result gives the same bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec

SCHEMA = "mars.result/1"
DECIMALS = 6
"""Microseconds: finer than any clock used here, and short enough to read."""


class ResultError(ValueError):
    """A result file cannot be read; the message names the file and the field."""


class TurnRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One turn as its client saw it; offsets in seconds since the run's start."""

    turn_index: int
    sent_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    ttft_s: float | None = None
    """From sending to the first token; a held first turn includes its time outside."""
    end_s: float | None = None
    lag_s: float = 0.0
    """Replay only: how much later than due it was sent."""
    error: str | None = None


class SessionRecord(msgspec.Struct, kw_only=True):
    """One session: its outcome, and where its time went.

    ``sct_s`` is null for a session that did not finish. ``ideal_s`` is its time alone on
    an idle machine (:mod:`mars.bench.ideal`). The parts ``held_s`` (outside the engine),
    ``queue_s`` (in the engine, before its first step), ``prefill_s``, ``decode_s``,
    ``tool_wait_s`` (queued for a slot), ``tool_s`` and ``gap_s`` sum to about ``sct_s``.
    """

    session_id: str
    arrival_s: float
    sct_s: float | None
    ideal_s: float | None = None
    held_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_wait_s: float = 0.0
    tool_s: float = 0.0
    gap_s: float = 0.0
    num_turns: int = 0
    num_tool_calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Prefix-cache hits, summed over the turns."""
    computed_tokens: int = 0
    """Tokens the engine computed for it, prefill and decode, repeats included."""
    recomputed_tokens: int = 0
    preemptions: int = 0
    tenant: str = "default"
    error: str | None = None
    turns: list[TurnRecord] = []

    @property
    def slowdown(self) -> float | None:
        """Session completion time over ideal time; null where either is unknown."""
        if self.sct_s is None or not self.ideal_s:
            return None
        return self.sct_s / self.ideal_s


class RunTotals(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What only the whole run knows; input of :func:`mars.bench.metrics.summarise`.

    Token counts and preemptions left null are summed over the sessions.
    """

    duration_s: float
    """First arrival to last end."""
    gpu_busy: float | None = None
    """Share of ``duration_s`` in which the engine ran a step, 0..1."""
    cpu_busy: float | None = None
    """Share of the tool slots' time in use, 0..1."""
    computed_tokens: int | None = None
    recomputed_tokens: int | None = None
    prefix_queries_tokens: int | None = None
    prefix_hits_tokens: int | None = None
    preemptions: int | None = None


class Summary(msgspec.Struct, kw_only=True):
    """The measures of one run; null where nothing was measured."""

    sessions: int
    sessions_failed: int
    duration_s: float
    sct_mean_s: float | None
    sct_p50_s: float | None
    sct_p90_s: float | None
    sct_p95_s: float | None
    sct_p99_s: float | None
    slowdown_mean: float | None
    slowdown_p95: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    goodput: dict[str, float]
    """Sessions per hour finished within alpha x ideal, by alpha (``"2"``, ``"3"``, ``"5"``)."""
    sessions_per_h: float
    output_tokens_per_s: float
    computed_tokens: int
    recomputed_tokens: int
    prefix_hit_rate: float | None
    preemptions: int
    gpu_busy: float | None
    cpu_busy: float | None
    fairness_jain: float | None
    """Jain's index of the sessions' normalised progress (ideal over actual time)."""


class ReplayQuality(msgspec.Struct, kw_only=True):
    """How well the machine kept up with a real-time replay.

    ``verdict`` is ``ok``, ``degraded`` (read with care) or ``refused`` (do not compare).
    """

    verdict: str
    reasons: list[str]
    time_scale: float
    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    loop_lag_p99_s: float | None
    """Delay of the replay's own event loop: its share of CPU starvation."""
    cpu_usage_mean: float | None
    cpu_pressure_mean: float | None
    engine_late_s: float | None
    """Emulated engine: real time lost against the model, in all."""
    engine_late_share: float | None
    """``engine_late_s`` over the engine's busy time."""
    tool_stretch: float | None = None
    """Seconds the tools ran over the seconds recorded (dilated alike)."""
    events_dropped: int = 0


class Result(msgspec.Struct, kw_only=True):
    """One experiment: what was asked, what came out, and per session where time went."""

    schema: str = SCHEMA
    config: dict[str, Any] = {}
    """Everything needed to run it again: trace, policy, admission, machine, seed, ..."""
    summary: Summary
    sessions: list[SessionRecord]
    replay: ReplayQuality | None = None
    environment: dict[str, Any] | None = None
    """Versions, CPU count and command of a real-time run; null in virtual time."""


def encode_result(result: Result) -> bytes:
    """Deterministic JSON: struct field order, rounded floats, one session a line.

    Raises:
        ValueError: a value is infinite or not a number.
    """
    tree = _rounded(msgspec.to_builtins(result))
    sessions = tree.pop("sessions")
    head = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    lines = ",\n".join(
        "  " + json.dumps(one, allow_nan=False, ensure_ascii=False) for one in sessions
    )
    body = f"[\n{lines}\n ]" if sessions else "[]"
    return f'{head[:-2]},\n "sessions": {body}\n}}\n'.encode()


def write_result(path: Path | str, result: Result) -> None:
    """Write ``result`` to ``path``; its folder is made if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_result(result))


def read_result(path: Path | str) -> Result:
    """Read a result.

    Raises:
        ResultError: not JSON, another schema, or a field of the wrong type.
    """
    raw = Path(path).read_bytes()
    try:
        result = msgspec.json.decode(raw, type=Result)
    except msgspec.MsgspecError as error:
        raise ResultError(f"{path}: not a {SCHEMA} file: {error}") from error
    if result.schema != SCHEMA:
        raise ResultError(f"{path}: schema is {result.schema!r}; this reads {SCHEMA!r}")
    return result


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a result holds {value}; use null for what is not known")
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
