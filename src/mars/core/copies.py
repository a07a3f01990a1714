# SPDX-License-Identifier: Apache-2.0
"""The link between GPU and host memory, and the KV copies that queue for it."""

from __future__ import annotations

from collections.abc import Iterable
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
