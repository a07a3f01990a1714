# SPDX-License-Identifier: Apache-2.0
"""vLLM's requests in the order of the policy."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.request import Request

from mars.core.coscheduler import CoScheduler
from mars.core.model import Turn
from mars.core.policy import Rank


class ServiceOrder:
    """Sorts requests as ``CoScheduler.rank_key`` does, without a call for each.

    Args:
        co: knows the turn of each request, and the policy.
    """

    def __init__(self, co: CoScheduler) -> None:
        self._co = co
        self._running: list[Turn] = []

    def sort_running(self, running: list[Request], now: float) -> None:
        """Bring the running turns' progress up to date, sort them and number the victims."""
        known, rank = self._co.turns, self._co.policy.rank
        keyed: list[tuple[Rank, float, str, Turn, Request]] = []
        for request in running:
            turn = known[request.request_id]
            turn.num_computed_tokens = request.num_computed_tokens
            turn.num_output_tokens = request.num_output_tokens
            keyed.append((rank(turn, now), turn.arrival_time, turn.request_id, turn, request))
        self._co.progressed()
        keyed.sort()
        self._running = [entry[3] for entry in keyed]
        running[:] = [entry[4] for entry in keyed]
        for position, request in enumerate(running):
            request.priority = position

    def sorted(self, requests: Iterable[Request], now: float) -> list[Request]:
        """Waiting requests in service order."""
        known, rank = self._co.turns, self._co.policy.rank
        keyed: list[tuple[Rank, float, str, Request]] = []
        for request in requests:
            turn = known[request.request_id]
            keyed.append((rank(turn, now), turn.arrival_time, turn.request_id, request))
        keyed.sort()
        return [entry[3] for entry in keyed]

    def turns_of(self, running: list[Request]) -> list[Turn]:
        """The turns of the running requests, which were sorted and have grown since."""
        turns = self._running
        if len(turns) > len(running):
            turns.clear()
        known = self._co.turns
        turns += [known[request.request_id] for request in running[len(turns) :]]
        return turns
