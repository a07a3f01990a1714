# SPDX-License-Identifier: Apache-2.0
"""The waiting queue of the engine, in the order of the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request


class RankedQueue(FCFSRequestQueue):
    """Waiting requests, sorted by the policy when a step first asks for one of them.

    ``len`` counts all of them, which keeps the engine awake and its gauges right;
    ``bool`` says whether the first may start now. vLLM's ``schedule()`` asks ``bool``
    before it looks at the head, so a closed gate costs nothing: no prefix lookup, no
    failed allocation.

    Args:
        has_seat: whether one more request may run at all.
        order: sorts requests by the policy.
        gate: whether the first may start.
    """

    def __init__(
        self,
        has_seat: Callable[[], bool],
        order: Callable[[Iterable[Request]], list[Request]],
        gate: Callable[[Request], bool],
    ) -> None:
        super().__init__()
        self._has_seat = has_seat
        self._order = order
        self._gate = gate
        self._is_sorted = True

    def __bool__(self) -> bool:
        return self.is_open()

    def is_open(self) -> bool:
        """Whether the first may start now."""
        if len(self) == 0 or not self._has_seat():
            return False
        if not self._is_sorted:
            self._is_sorted = True
            if len(self) > 1:
                requests = self._order(self)
                self.clear()
                self.extend(requests)
        return self._gate(self[0])

    def begin_step(self) -> None:
        """Ranks may have changed."""
        self._is_sorted = False

    def peek_request(self) -> Request:
        """The first; vLLM has just asked the gate, which is not asked again."""
        return self[0]
