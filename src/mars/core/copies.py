# SPDX-License-Identifier: Apache-2.0
"""The link between GPU and host memory, and the KV copies that queue for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

_PCIE_LATENCY_S = 20e-6


@dataclass(slots=True, frozen=True)
class HostLink:
    """Both directions of a GPU's link to host memory work at once, as PCIe's do.

    Attributes:
        bytes_per_s: what one direction sustains with pinned memory.
        latency_s: from the submission of a copy to its first byte. 20 us: assumed, a kernel
            launch and an event.
    """

    bytes_per_s: float
    latency_s: float = _PCIE_LATENCY_S

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0 or self.latency_s < 0:
            raise ValueError(
                f"a host link needs bytes_per_s > 0 and latency_s >= 0, not "
                f"{self.bytes_per_s:g} and {self.latency_s:g}"
            )

    def copy_s(self, num_bytes: float) -> float:
        """Seconds of one copy that has its direction to itself."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(slots=True, frozen=True)
class HostMemory:
    """Host memory as a second tier of KV: ``num_blocks`` of ``bytes_per_block`` each."""

    link: HostLink
    bytes_per_block: int
    num_blocks: int

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.bytes_per_block < 1:
            raise ValueError(
                f"a host tier needs at least one block of one byte, not {self.num_blocks} of "
                f"{self.bytes_per_block}"
            )


class CopyEngine:
    """Copies in modelled time: each direction does one after the other, in order.

    So does vLLM's own worker (``SingleDirectionOffloadingHandler``): one stream a direction,
    each copy after the one before.
    """

    def __init__(self, link: HostLink) -> None:
        self.link = link
        self._ends: dict[int, float] = {}
        self._free_at = {True: 0.0, False: 0.0}
        self.num_bytes = {True: 0, False: 0}
        """Copied so far: to the GPU (True), to the host (False)."""

    def submit(self, copy_id: int, num_bytes: int, now: float, *, is_load: bool) -> float:
        """Queue a copy; when it will be done."""
        end = max(now, self._free_at[is_load]) + self.link.copy_s(num_bytes)
        self._free_at[is_load] = end
        self._ends[copy_id] = end
        self.num_bytes[is_load] += num_bytes
        return end

    def finished(self, now: float) -> list[int]:
        """Copies that are done by ``now``, each told once, in the order of their ends."""
        done = sorted((end, copy_id) for copy_id, end in self._ends.items() if end <= now)
        for _, copy_id in done:
            del self._ends[copy_id]
        return [copy_id for _, copy_id in done]

    def end_of(self, copy_ids: Iterable[int]) -> float:
        """When the last of these is done; 0 if none is under way."""
        return max((self._ends.get(copy_id, 0.0) for copy_id in copy_ids), default=0.0)

    @property
    def next_end(self) -> float | None:
        """When the next copy is done; None if none is under way."""
        return min(self._ends.values(), default=None)


class StepCopies:
    """Copies around the steps of an engine, as vLLM's worker makes them.

    A store is submitted with the step after the one that wrote the blocks. Both directions
    wait for what the GPU has been given to compute before them
    (``SingleDirectionOffloadingHandler.transfer_async``).
    """

    def __init__(self, link: HostLink) -> None:
        self.engine = CopyEngine(link)
        self._deferred: dict[int, int] = {}

    @property
    def has_deferred(self) -> bool:
        """Whether stores of the last step wait for the next."""
        return bool(self._deferred)

    def before(
        self, stores: dict[int, int], flushed: AbstractSet[int], now: float, free_at: float
    ) -> float:
        """What precedes a forward: the stores of the step before, and flushes.

        A flush keeps the step from overwriting blocks that a store still reads: the step
        waits for it.

        Args:
            stores: bytes of each copy to the host that this step begins; those flushed are
                taken out and begin at once.
            flushed: copies to wait for.
            now: when the step is submitted.
            free_at: when the step before it is done.

        Returns:
            When the flushed copies are done; 0 if nothing is flushed.
        """
        for copy_id in flushed:
            if (num_bytes := stores.pop(copy_id, None)) is not None:
                self._deferred[copy_id] = num_bytes
        start = max(now, free_at)
        for copy_id, num_bytes in self._deferred.items():
            self.engine.submit(copy_id, num_bytes, start, is_load=False)
        self._deferred.clear()
        return self.engine.end_of(flushed)

    def after(
        self, stores: Mapping[int, int], loads: Mapping[int, int], now: float, free_at: float
    ) -> list[int]:
        """What follows the launch of a forward: loads queue behind it, stores are noted.

        Args:
            stores: bytes of each copy to the host.
            loads: bytes of each copy to the GPU.
            now: when the step was submitted.
            free_at: when it will be done.

        Returns:
            The copies that are done by ``now``.
        """
        for copy_id, num_bytes in loads.items():
            self.engine.submit(copy_id, num_bytes, max(now, free_at), is_load=True)
        self._deferred.update(stores)
        return self.engine.finished(now)
