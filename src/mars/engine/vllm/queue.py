# SPDX-License-Identifier: Apache-2.0
"""The waiting queue of the engine, in the order of the policy."""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request


class RankedQueue(FCFSRequestQueue):
    """Waiting requests, sorted by the policy once a step.

    ``len`` counts all of them, which keeps the engine awake and its gauges right;
    ``bool`` says whether the first may start now. vLLM's ``schedule()`` asks ``bool``
    before it looks at the head, so a closed gate costs nothing: no prefix lookup, no
    failed allocation.
    """

    def __init__(self, gate: Callable[[Request], bool]) -> None:
        super().__init__()
        self._gate = gate

    def __bool__(self) -> bool:
        return len(self) > 0 and self._gate(self[0])

    def peek_request(self) -> Request:
        """The first; vLLM has just asked the gate, which is not asked again."""
        return self[0]

    def reorder(self, requests: list[Request]) -> None:
        """Take a new order of the same requests."""
        self.clear()
        self.extend(requests)
