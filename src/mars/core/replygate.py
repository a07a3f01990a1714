# SPDX-License-Identifier: Apache-2.0
"""Tool admission without a tool runtime: which replies that ask for tools wait, and in what order.

A tool cannot start before its call arrives, so a reply that is kept back is a tool that is
queued. Slots and order are those of a :class:`~mars.core.policy.ToolPolicy`. Nothing waits
unless the host's CPUs are known to be swamped: a client may run its tools elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mars.core.model import Load, Session, ToolCall
from mars.core.policy import ToolPolicy
from mars.core.window import Pressure


@dataclass(slots=True)
class Swamped:
    """Whether the CPUs are: pressure (PSI ``some avg10``) where known, else their usage.

    0.5: in half of the time somebody who could run had no core; relieved at 0.2. Usage:
    0.95 and 0.8 (all chosen). Unknown is not swamped: replies are held on evidence alone.
    """

    pressure: Pressure = field(default_factory=lambda: Pressure(high=0.5, low=0.2))
    usage: Pressure = field(default_factory=lambda: Pressure(high=0.95, low=0.8))

    def update(self, load: Load) -> bool:
        """Take one sample; whether they are."""
        if load.cpu_pressure is not None:
            return self.pressure.update(load.cpu_pressure)
        return load.cpu_usage is not None and self.usage.update(load.cpu_usage)


@dataclass(slots=True)
class KeptReply:
    """The calls of one reply that is kept back."""

    session: Session
    calls: list[ToolCall]


class ReplyGate:
    """The queue of replies that are kept back.

    Args:
        policy: order and slots.
        num_slots: tools that run at once, where the policy does not say; None: one a core.
    """

    def __init__(self, policy: ToolPolicy, num_slots: int | None = None) -> None:
        self.policy = policy
        self.kept: list[KeptReply] = []
        self._num_slots = num_slots
        self._swamped = Swamped()

    def is_closed(self, load: Load, num_running: int, now: float) -> bool:
        """Whether a reply that asks for a tool now has to wait."""
        return self._swamped.update(load) and self._room(load, num_running, now) <= 0

    def asked(self, session: Session, calls: list[ToolCall], now: float) -> None:
        """A reply asks for these calls, kept back or not."""
        for call in calls:
            self.policy.on_queue(call, session, now)

    def keep(self, reply: KeptReply) -> None:
        """Its reply waits."""
        self.kept.append(reply)

    def give_up(self, reply: KeptReply) -> None:
        """Its reply waits no longer."""
        if reply in self.kept:
            self.kept.remove(reply)

    def opened(self, load: Load, num_running: int, now: float) -> list[KeptReply]:
        """Replies to let go now, in order; all of them once the CPUs are relieved."""
        if not self.kept:
            return []
        if not self._swamped.update(load):
            room = len(self.kept)
        else:
            room = self._room(load, num_running, now)
        rank = self.policy.rank
        self.kept.sort(key=lambda r: rank(r.calls[0], r.session, now))
        free = self.kept[: max(0, room)]
        self.kept = self.kept[len(free) :]
        return free

    def _room(self, load: Load, num_running: int, now: float) -> int:
        slots = self.policy.slots(load, now) or self._num_slots or load.cpu_cores
        return len(self.kept) + 1 if slots is None else slots - num_running
