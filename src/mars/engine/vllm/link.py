# SPDX-License-Identifier: Apache-2.0
"""Which of an engine's links is this process's."""

from __future__ import annotations

from vllm.config import ParallelConfig

from mars.telemetry.engine_link import EngineLink

__all__ = ["EngineLink", "rank_of"]


def rank_of(parallel: ParallelConfig) -> int:
    """Data-parallel rank of this engine; each rank is an engine core with own sockets."""
    return parallel.data_parallel_index
