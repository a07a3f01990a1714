# SPDX-License-Identifier: Apache-2.0
"""What every block of GPU and host memory holds, so that wrong KV cannot be read unseen.

vLLM's real scheduler and ``OffloadingConnector`` decide; the copies of
``mars.engine.emulated`` are followed at the times at which they begin and end. Checked are
each prefix that a step reads, each block that a store reads until it is done, and each host
block that a load reads until it is done.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm.config import KVTransferConfig
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from mars.core.copies import CopyEngine, HostLink
from mars.engine.vllm.virtual import VirtualEngine


class Written(NamedTuple):
    """So many tokens of block ``index`` of a request."""

    request: Request
    index: int
    num_tokens: int


class Copy(NamedTuple):
    """Blocks on their way, and what the source held when the copy was planned."""

    is_load: bool
    source: list[int]
    target: list[int]
    held: list[Written | None]


class TimedCopies(CopyEngine):
    """Remembers when each copy ends."""

    def __init__(self, link: HostLink) -> None:
        super().__init__(link)
        self.ends: dict[int, float] = {}

    def submit(self, copy_id: int, num_bytes: int, now: float, *, is_load: bool) -> float:
        end = self.ends[copy_id] = super().submit(copy_id, num_bytes, now, is_load=is_load)
        return end


class CheckedEngine(VirtualEngine):
    """Follows every block; ``wrong`` lists what was read and should not have been.

    ``fails_every``: so manieth load is reported as failed, and brings nothing.
    """

    def __init__(self, *arguments: Any, fails_every: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self._offload is not None
        assert self._host is not None
        self.wrong: list[str] = []
        self.num_reads = self.num_loads = self.num_failed = 0
        self._loading: dict[int, str] = {}
        self._fails_every = fails_every
        self._timed = self._offload.copies.engine = TimedCopies(self._host.link)
        self._gpu: dict[int, Written] = {}
        self._host_blocks: dict[int, Written] = {}
        self._under_way: dict[int, Copy] = {}
        self._failing: set[int] = set()

    def _offloading(self) -> KVTransferConfig | None:
        config = super()._offloading()
        assert config is not None
        config.kv_load_failure_policy = "recompute"
        return config

    # --- what the engine does ------------------------------------------------------------
    def _start_copies(self, output: SchedulerOutput, now: float) -> float:
        start = super()._start_copies(output, now)
        metadata: Any = output.kv_connector_metadata
        begin = max(now, start, self._free_at)
        self._finish_copies(begin)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            self._forward(self.scheduler.requests[request_id], num_tokens)
        self._plan(metadata.store_jobs, is_load=False)
        return start

    def _end_copies(self, output: SchedulerOutput, now: float) -> KVConnectorOutput | None:
        metadata: Any = output.kv_connector_metadata
        self._plan(metadata.load_jobs, is_load=True)
        for copy_id, entry in metadata.load_jobs.items():
            self.num_loads += 1
            if self._fails_every and self.num_loads % self._fails_every == 0:
                self._failing.add(copy_id)
                self._loading[copy_id] = entry.req_id
        done = super()._end_copies(output, now)
        self._finish_copies(now)
        if done is not None and self._failing:
            meta: Any = done.kv_connector_worker_meta
            failed = self._failing & meta.completed_jobs.keys()
            self._failing -= failed
            self.num_failed += len(failed)
            if failed:
                done.failed_recving = {self._loading.pop(copy_id) for copy_id in failed}
        return done

    # --- what it means for the blocks ----------------------------------------------------
    def _forward(self, request: Request, num_tokens: int) -> None:
        size = self.shape.block_size
        blocks = self.scheduler.kv_cache_manager.get_blocks(request.request_id).blocks[0]
        ids = [block.block_id for block in blocks]
        end = request.num_computed_tokens
        start = end - num_tokens
        for index in range(-(-start // size)):
            self._read(request, index, ids[index], min(size, start - index * size))
        for index in range(start // size, -(-end // size)):
            filled = min(size, end - index * size)
            held = self._gpu.get(ids[index])
            if held is None or not _is_same(held, request, index) or held.num_tokens < filled:
                self._gpu[ids[index]] = Written(request, index, filled)

    def _read(self, request: Request, index: int, block_id: int, num_tokens: int) -> None:
        self.num_reads += 1
        held = self._gpu.get(block_id)
        if held is None or held.num_tokens < num_tokens or not _is_same(held, request, index):
            self.wrong.append(f"{request.request_id} reads block {index} of {_name(held)}")

    def _plan(self, entries: dict[int, Any], *, is_load: bool) -> None:
        memory = self._host_blocks if is_load else self._gpu
        for copy_id, entry in entries.items():
            source = [int(i) for i in entry.src_spec.block_ids]
            target = [int(i) for i in entry.dst_spec.block_ids]
            held = [memory.get(i) for i in source]
            self._under_way[copy_id] = Copy(is_load, source, target, held)

    def _finish_copies(self, until: float) -> None:
        ends = self._timed.ends
        due = sorted((ends[i], i) for i in self._under_way if ends.get(i, until + 1) <= until)
        for _, copy_id in due:
            copy = self._under_way.pop(copy_id)
            if copy_id in self._failing:
                continue
            source = self._host_blocks if copy.is_load else self._gpu
            target = self._gpu if copy.is_load else self._host_blocks
            for at, to, held in zip(copy.source, copy.target, copy.held, strict=True):
                now = source.get(at)
                if held is None or now is None or not _is_equal(held, now):
                    what = "load" if copy.is_load else "store"
                    self.wrong.append(f"a {what} of {_name(held)} found {_name(now)}")
                else:
                    target[to] = now


def _is_same(held: Written, request: Request, index: int) -> bool:
    """Whether a block holds what a request has at that place."""
    if held.index != index:
        return False
    if held.request.request_id == request.request_id:
        return True
    theirs, ours = held.request.block_hashes, request.block_hashes
    return index < min(len(theirs), len(ours)) and theirs[index] == ours[index]


def _is_equal(one: Written, other: Written) -> bool:
    return _is_same(one, other.request, other.index)


def _name(held: Written | None) -> str:
    return "nothing" if held is None else f"{held.request.request_id}[{held.index}]"
