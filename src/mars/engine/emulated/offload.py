# SPDX-License-Identifier: Apache-2.0
"""The worker side of vLLM's native KV offloading, where copies take time and move nothing.

The scheduler side (which block is where in host memory, what is stored, loaded and evicted)
is vLLM's own ``OffloadingConnector``.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.v1.outputs import KVConnectorOutput

from mars.core.copies import HostMemory, StepCopies


class OffloadWorker:
    """Copies of one engine.

    Args:
        host: the tier; its ``num_blocks`` are the scheduler side's business.
    """

    def __init__(self, host: HostMemory) -> None:
        self.copies = StepCopies(host.link)
        self._bytes_per_block = host.bytes_per_block
        self._loading: dict[int, str] = {}
        self._stores: dict[int, int] = {}

    def before(self, metadata: OffloadingConnectorMetadata, now: float, free_at: float) -> float:
        """Copies that precede a forward; see :meth:`mars.core.copies.StepCopies.before`."""
        self._stores = {
            copy_id: self._num_bytes(entry.src_spec)
            for copy_id, entry in metadata.store_jobs.items()
        }
        return self.copies.before(self._stores, metadata.jobs_to_flush or set(), now, free_at)

    def after(
        self, metadata: OffloadingConnectorMetadata, now: float, free_at: float
    ) -> KVConnectorOutput | None:
        """Copies that follow its launch; see :meth:`mars.core.copies.StepCopies.after`.

        Returns:
            What vLLM's worker would report with this step; None: nothing is done.
        """
        loads: dict[int, int] = {}
        for copy_id, entry in metadata.load_jobs.items():
            self._loading[copy_id] = entry.req_id
            loads[copy_id] = self._num_bytes(entry.dst_spec)
        done = self.copies.after(self._stores, loads, now, free_at)
        if not done:
            return None
        report = OffloadingWorkerMetadata()
        received: set[str] = set()
        for copy_id in done:
            report.mark_completed(copy_id)
            if (request_id := self._loading.pop(copy_id, None)) is not None:
                received.add(request_id)
        return KVConnectorOutput(finished_recving=received or None, kv_connector_worker_meta=report)

    def _num_bytes(self, blocks: Any) -> int:
        return len(blocks.block_ids) * self._bytes_per_block
