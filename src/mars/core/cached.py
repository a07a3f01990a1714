# SPDX-License-Identifier: Apache-2.0
"""KV that stays cached between turns and is free to be taken: its worth, and who lost some."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mars.core.events import KvEvicted
from mars.core.held import Emit, HeldKv
from mars.core.model import Load, Session
from mars.core.policy import SchedulingPolicy
from mars.core.worth import Revalued

_USELESS = -1.0e18


class CachedKv:
    """What the policy says of the free cached blocks of each session.

    Args:
        policy: says what a prefix is worth.
        sessions: those the engine knows.
        held: what is held of them by reference.
        block_size: tokens per KV block.
        emit: receives every event.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        sessions: Mapping[str, Session],
        held: HeldKv,
        block_size: int,
        emit: Emit,
    ) -> None:
        self._policy = policy
        self._sessions = sessions
        self._held = held
        self._block_size = block_size
        self._emit = emit
        self._revalued = Revalued()

    def value(self, session_id: str, load: Load, now: float) -> float:
        """Worth of keeping a session's cached blocks; those of no use come first."""
        session = self._sessions.get(session_id)
        if session is None or session.gives_kv:
            return _USELESS
        return self._policy.retention_value(session, load, now)

    def changed(self, session_id: str) -> None:
        """It began or ceased to be of no use."""
        if self._policy.evicts_by_value:
            self._revalued.add(session_id)

    def take_revalued(self) -> Collection[str] | None:
        """Sessions whose :meth:`value` changed since the last call; None: any may have."""
        told, own = self._policy.take_revalued(), self._revalued.take()
        if told is None or own is None:
            return None
        return {*told, *own} if own else told

    def evicted(self, session_id: str, num_blocks: int, value: float, now: float) -> None:
        """Cached blocks of this session were given to somebody else."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        session.cached_tokens = max(0, session.cached_tokens - num_blocks * self._block_size)
        self._held.changed(session_id)
        self._emit(KvEvicted(time=now, session_id=session_id, num_blocks=num_blocks, value=value))

    def forget(self) -> None:
        """The prefix cache was reset: no session has KV in it any more."""
        for session in self._sessions.values():
            session.cached_tokens = 0
        self.take_revalued()
        self._revalued.add_all()
