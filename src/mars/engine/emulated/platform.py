# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU platform with the scheduling of a GPU; needs neither GPU nor compiled kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig

GPU_BLOCK_SIZE = 16
"""Tokens a KV block where ``--block-size`` is not given: vLLM's default on CUDA."""


class EmulatedPlatform(CpuPlatform):
    """The CPU platform switches asynchronous scheduling off and enlarges blocks; undo that."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """Shown in vLLM's log."""
        return "mars-emulated"

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Adapt everything else as the CPU platform does."""
        scheduler, cache = vllm_config.scheduler_config, vllm_config.cache_config
        is_async = scheduler.async_scheduling
        block_size = cache.block_size if cache.user_specified_block_size else GPU_BLOCK_SIZE
        super().check_and_update_config(vllm_config)
        scheduler.async_scheduling = is_async
        cache.block_size = block_size

    @classmethod
    def import_kernels(cls) -> None:
        """No kernel is ever called."""
