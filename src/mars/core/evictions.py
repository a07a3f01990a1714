# SPDX-License-Identifier: Apache-2.0
"""Telling what plain LRU takes from live sessions, where no policy orders the eviction."""

from __future__ import annotations

from mars.core.coscheduler import CoScheduler
from mars.core.events import KvEvicted
from mars.core.model import Load


class EvictionTally:
    """Sums the cached blocks taken from each session in a step, and tells them at its end.

    It only tells: what a policy believes to be cached does not change, as in stock vLLM.

    Args:
        co: knows the live sessions, prices what they lost, and takes the event.
    """

    def __init__(self, co: CoScheduler) -> None:
        self._co = co
        self._num_taken: dict[str, int] = {}

    def take(self, session_id: str, num_blocks: int) -> None:
        """Cached blocks that this session freed last were given to somebody else."""
        if session_id in self._co.sessions:
            self._num_taken[session_id] = self._num_taken.get(session_id, 0) + num_blocks

    def tell(self, load: Load, now: float) -> None:
        """End a step: one event for each session that lost blocks, with their price."""
        if not self._num_taken:
            return
        co = self._co
        for session_id, num_blocks in self._num_taken.items():
            if session_id in co.sessions:
                value = co.cached.value(session_id, load, now)
                co.emit(
                    KvEvicted(time=now, session_id=session_id, num_blocks=num_blocks, value=value)
                )
        self._num_taken.clear()
