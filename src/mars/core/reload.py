# SPDX-License-Identifier: Apache-2.0
"""What it costs to get a lost context back where host memory has a part of it."""

from __future__ import annotations

from mars.core.copies import HostMemory
from mars.core.retention import PrefillCost


class TieredCost:
    """Prices prefill as ``cost`` does, and the copy from host memory as its link does.

    Args:
        cost: prices what must be computed.
        host: the tier; its blocks are of ``block_size`` tokens.
        block_size: tokens of a block.
    """

    def __init__(self, cost: PrefillCost, host: HostMemory, block_size: int) -> None:
        self.host = host
        self.reload_s_per_token = host.bytes_per_block / block_size / host.link.bytes_per_s
        self._cost = cost

    def prefill_s(self, num_tokens: int, context_tokens: int = 0) -> float:
        """Seconds to compute ``num_tokens`` after ``context_tokens`` present ones."""
        return self._cost.prefill_s(num_tokens, context_tokens)

    def reload_s(self, num_tokens: int) -> float:
        """Seconds to copy so many tokens' KV back, with the link to itself; 0 for none."""
        if num_tokens <= 0:
            return 0.0
        return self.host.link.latency_s + num_tokens * self.reload_s_per_token
