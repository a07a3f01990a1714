# SPDX-License-Identifier: Apache-2.0
"""Keeps a tool call from filling the disk under everybody.

When little is left free in the file system of its folder, a call that has written much itself
is ended; one that only runs at that time is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

BLAME_BYTES = 16 * 2**20
"""Written by a call before it is held to account for a full disk (chosen)."""


class DiskFloor:
    """What must stay free, as one call sees it.

    Args:
        folder: the call's.
        floor_bytes: what must stay free; None: nothing must.
    """

    def __init__(self, folder: str | None, floor_bytes: int | None) -> None:
        self._folder = folder or "."
        self._floor_bytes = floor_bytes
        self._written: dict[int, int] = {}
        """Bytes by process; the dead keep what they were last seen with."""

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to look after."""
        return self._floor_bytes is not None

    def is_broken_by(self, pids: Iterable[int]) -> bool:
        """Whether the disk is nearly full and these processes did much to fill it."""
        if self._floor_bytes is None:
            return False
        for pid in pids:
            self._written[pid] = max(self._written.get(pid, 0), _written_bytes(pid))
        if sum(self._written.values()) < BLAME_BYTES:
            return False
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return False  # its folder is gone, and so is what it wrote there
        return found.f_bavail * found.f_frsize < self._floor_bytes

    def notice(self) -> str:
        """For the agent."""
        assert self._floor_bytes is not None
        return (
            f"ended because the disk is nearly full: {self._floor_bytes / 2**20:.0f} MiB must "
            "stay free for all; delete what is not needed, or write less"
        )


def _written_bytes(pid: int) -> int:
    """What a process gave to storage; 0 where it cannot be known."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    values = dict(line.split(": ", 1) for line in text.splitlines())
    return int(values.get("write_bytes", 0)) - int(values.get("cancelled_write_bytes", 0))
