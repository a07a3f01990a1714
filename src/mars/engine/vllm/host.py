# SPDX-License-Identifier: Apache-2.0
"""What vLLM's own offloading has of a prompt in host memory; read, never changed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from vllm.logger import init_logger
from vllm.v1.request import Request

from mars.core.copies import HostLink, HostMemory
from mars.core.reload import TieredCost
from mars.core.retention import FlatCost
from mars.profiles import Profile

logger = init_logger(__name__)

ASSUMED_LINK = HostLink(bytes_per_s=25e9)
"""Without a profile: PCIe 4.0 x16, whose 32 GB/s sustain about so much. Assumed."""


class HostFacts:
    """Size and content of the host tier behind vLLM's ``OffloadingConnector``.

    Args:
        connector: the scheduler's connector.
        bytes_per_block: KV of one GPU block, all layers and ranks.
    """

    def __init__(self, connector: Any, bytes_per_block: int) -> None:
        scheduler = connector.connector_scheduler
        self._manager = scheduler.manager
        (group,) = scheduler.config.kv_group_configs
        self._hashes_per_chunk: int = group.hashes_per_chunk
        self._tokens_per_chunk: int = group.tokens_per_chunk
        self._group = group.group_idx.to_bytes(4, "big")
        blocks_per_chunk = group.tokens_per_chunk // group.tokens_per_block
        self.block_size: int = group.tokens_per_block
        self.num_blocks: int = self._manager._num_chunks * blocks_per_chunk  # noqa: SLF001
        self._bytes_per_block = bytes_per_block

    def num_leading_tokens(self, request: Request) -> int:
        """Leading tokens of a prompt that host memory has, by bisection: tails leave first."""
        count = request.num_prompt_tokens // self._tokens_per_chunk
        every = self._hashes_per_chunk
        names = request.block_hashes[every - 1 : count * every : every]
        has = self._manager._policy.get  # noqa: SLF001 -- a lookup would promote or be counted
        group = self._group
        found = bisect_left(names, True, key=lambda name: has(name + group) is None)
        return found * self._tokens_per_chunk

    def prices(self, profile: Profile | None) -> TieredCost:
        """The offered cost, with what a reload takes: a profile's link and KV, if there is one."""
        if profile is None:
            host = HostMemory(ASSUMED_LINK, self._bytes_per_block, self.num_blocks)
            return TieredCost(FlatCost(), host, self.block_size)
        size = profile.kv_bytes_per_token * self.block_size
        host = HostMemory(profile.host_link, size, self.num_blocks)
        return TieredCost(profile.cost, host, self.block_size)


def loaded_tokens(allocated: Mapping[str, Any]) -> int:
    """What a waiting turn has once its load is done, of ``allocate_slots``'s arguments."""
    return allocated["num_new_computed_tokens"] + allocated["num_external_computed_tokens"]


def host_facts(scheduler: Any) -> HostFacts | None:
    """What is known of the scheduler's host memory; None where nothing is, and the log says why."""
    if scheduler.connector is None:
        return None
    facts, reason = _read(scheduler)
    if facts is None:
        logger.warning("MARS does not price what this KV connector brings back: %s", reason)
    return facts


def _read(scheduler: Any) -> tuple[HostFacts | None, str]:
    connector = scheduler.connector
    name = type(connector).__name__
    if name != "OffloadingConnector":
        return None, f"{name} does not say what it has"
    groups = scheduler.kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return None, f"the model has {len(groups)} KV cache groups"
    parallel = scheduler.vllm_config.parallel_config
    ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    spec = groups[0].kv_cache_spec
    size = spec.page_size_bytes * len(groups[0].layer_names) * ranks
    try:
        facts = HostFacts(connector, size)
    except (AttributeError, TypeError, ValueError) as error:
        return None, f"this vLLM's {name} is built otherwise ({error})"
    return (facts, "") if facts.num_blocks else (None, f"{name} has no memory")
