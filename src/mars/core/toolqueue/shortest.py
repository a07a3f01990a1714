# SPDX-License-Identifier: Apache-2.0
"""Shortest: short calls and old sessions first, fair between sessions, with ageing."""

from __future__ import annotations

from collections import OrderedDict

from mars.core.estimate import DurationEstimator
from mars.core.model import Load, Session, ToolCall
from mars.core.policy import BaseToolPolicy, Rank, tool_policies
from mars.core.slots import CoreDemand

_EXPRESS_S, _EXPRESS_P, _EXPRESS_CALLS = 2.0, 0.9, 5.0
"""A call that ends within so many seconds with this probability (by so many of its class)
may pass full slots (chosen)."""
_MAX_REMEMBERED = 8192
"""Calls in the system, and sessions, remembered; beyond that the oldest are forgotten."""


@tool_policies.register("shortest")
class Shortest(BaseToolPolicy):
    """Earliest deadline first; the deadline is fixed when the call is queued.

    ``deadline = max(session arrival, queued_at - max_lead_s) + attained_share * tool
    seconds the session had + stretch * (expected call + its other calls in the system) /
    weight``, at most ``queued_at + max_wait_s``. Hence:

    - short calls overtake long ones (``expected`` is learned per tool and command);
    - sessions near their end go first, taken to be the older ones (turns order no better);
    - a session with many calls at once, or with much tool time behind it, steps back;
    - nobody starves: only calls queued within ``max_lead_s + max_wait_s`` after a call can
      overtake it.

    Ignores the engine. Defaults are chosen with benchmarks/tool_queue.py.

    Args:
        stretch: Seconds of lead that one second of work costs.
        max_lead_s: Most lead (seconds) an old session gets over a new one.
        max_wait_s: Most lead (seconds) others can get over a call, however long it is.
        attained_share: Seconds of lead that one second of past tool time costs.
        overcommit: Most slots per core, by the cores that tools really use (measured: 0.4 to
            1.0; :class:`~mars.core.slots.CoreDemand`); 1: the slots that are configured.
        estimator: Learned durations; own by default.
    """

    def __init__(
        self,
        stretch: float = 50.0,
        max_lead_s: float = 1200.0,
        max_wait_s: float = 600.0,
        attained_share: float = 0.5,
        overcommit: float = 2.0,
        estimator: DurationEstimator | None = None,
    ) -> None:
        bounds = {"stretch": stretch, "max_lead_s": max_lead_s, "max_wait_s": max_wait_s}
        for name, value in bounds.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        self.stretch = stretch
        self.max_lead_s = max_lead_s
        self.max_wait_s = max_wait_s
        self.attained_share = attained_share
        self.estimator = estimator or DurationEstimator()
        self._demand = CoreDemand(overcommit)
        # Call in the system -> (session, expected seconds, deadline).
        self._calls: OrderedDict[str, tuple[str, float, float]] = OrderedDict()
        self._outstanding: dict[str, set[str]] = {}
        self._attained_s: OrderedDict[str, float] = OrderedDict()

    def on_queue(self, call: ToolCall, session: Session, now: float) -> None:
        self._forget(call.tool_call_id)
        expected_s, deadline = self._judge(call, session)
        self._calls[call.tool_call_id] = (call.session_id, expected_s, deadline)
        self._outstanding.setdefault(call.session_id, set()).add(call.tool_call_id)
        if len(self._calls) > _MAX_REMEMBERED:
            self._forget(next(iter(self._calls)))

    def rank(self, call: ToolCall, session: Session, now: float) -> Rank:
        known = self._calls.get(call.tool_call_id)
        return (known[2] if known else self._judge(call, session)[1], call.queued_at)

    def slots(self, load: Load, now: float) -> int | None:
        return self._demand.slots(load)

    def is_express(self, call: ToolCall, now: float) -> bool:
        name, known = call.tool_name, self.estimator
        is_known = known.weight(name) >= _EXPRESS_CALLS
        return is_known and known.survival(name, 0.0, _EXPRESS_S) > _EXPRESS_P

    def on_finish(self, call: ToolCall, now: float) -> None:
        self._forget(call.tool_call_id)
        if call.started_at is None or call.finished_at is None:
            return
        duration_s = call.finished_at - call.started_at
        self.estimator.observe(call.tool_name, duration_s)
        self._demand.observe(call)
        self._attained_s[call.session_id] = self._attained_s.pop(call.session_id, 0.0) + duration_s
        if len(self._attained_s) > _MAX_REMEMBERED:
            self._attained_s.popitem(last=False)

    def on_session_end(self, session_id: str, now: float) -> None:
        self._attained_s.pop(session_id, None)

    def _judge(self, call: ToolCall, session: Session) -> tuple[float, float]:
        """Expected seconds and deadline of a call that is queued now."""
        expected_s = self.estimator.expected(call.tool_name)
        others = self._outstanding.get(call.session_id, ())
        work_s = expected_s + sum(self._calls[other][1] for other in others)
        deadline = max(session.arrival_time, call.queued_at - self.max_lead_s)
        deadline += self.attained_share * self._attained_s.get(call.session_id, 0.0)
        deadline += self.stretch * work_s / max(session.weight, 1e-6)
        return expected_s, min(deadline, call.queued_at + self.max_wait_s)

    def _forget(self, tool_call_id: str) -> None:
        known = self._calls.pop(tool_call_id, None)
        if known is not None:
            own = self._outstanding[known[0]]
            own.discard(tool_call_id)
            if not own:
                del self._outstanding[known[0]]
