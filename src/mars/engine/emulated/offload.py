# SPDX-License-Identifier: Apache-2.0
"""The worker side of vLLM's native KV offloading, where copies take time and move nothing.

The scheduler side (which block is where in host memory, what is stored, loaded and evicted)
is vLLM's own ``OffloadingConnector``. This does in modelled time what its worker side does
on a GPU, in the same order within a step: stores of the step before, flushes, forward,
loads, results. Both directions wait for the compute stream as it is when they are
submitted (``SingleDirectionOffloadingHandler.transfer_async``).
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.v1.outputs import KVConnectorOutput

from mars.core.copies import CopyEngine, HostMemory


class OffloadWorker:
    """Copies of one engine.

    Args:
        host: the tier; its ``num_blocks`` are the scheduler side's business.
    """

    def __init__(self, host: HostMemory) -> None:
        self.copies = CopyEngine(host.link)
        self._bytes_per_block = host.bytes_per_block
        self._deferred: dict[int, int] = {}
        self._loading: dict[int, str] = {}

    def before(self, metadata: OffloadingConnectorMetadata, now: float, free_at: float) -> float:
        """What precedes a forward: stores of the step before, and flushes.

        A store reads what the step before wrote, so it starts when that is done; a flush
        keeps the step from overwriting blocks that a store still reads.

        Args:
            metadata: of the step.
            now: when the step is submitted.
            free_at: when the step before it is done.

        Returns:
            When the flushed copies are done; 0 if nothing is flushed.
        """
        flushed = metadata.jobs_to_flush or set()
        for copy_id in flushed:
            if (entry := metadata.store_jobs.pop(copy_id, None)) is not None:
                self._deferred[copy_id] = self._num_bytes(entry.src_spec)
        for copy_id, num_bytes in self._deferred.items():
            self.copies.submit(copy_id, num_bytes, max(now, free_at), is_load=False)
        self._deferred.clear()
        return self.copies.end_of(flushed)

    def after(
        self, metadata: OffloadingConnectorMetadata, now: float, free_at: float
    ) -> KVConnectorOutput | None:
        """What follows the launch of a forward: loads queue behind it, what is done is told.

        Args:
            metadata: of the step.
            now: when the step was submitted.
            free_at: when it will be done.

        Returns:
            What vLLM's worker would report with this step; None: nothing is done.
        """
        start = max(now, free_at)
        for copy_id, entry in metadata.load_jobs.items():
            self._loading[copy_id] = entry.req_id
            self.copies.submit(copy_id, self._num_bytes(entry.dst_spec), start, is_load=True)
        for copy_id, entry in metadata.store_jobs.items():
            self._deferred[copy_id] = self._num_bytes(entry.src_spec)
        done = self.copies.finished(now)
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
