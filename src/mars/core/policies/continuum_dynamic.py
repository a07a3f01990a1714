# SPDX-License-Identifier: Apache-2.0
"""Continuum as its paper has it: the time to live that is worth most, per tool."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from mars.core.forecast import TurnsAhead
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank, scheduling_policies
from mars.core.retention import PrefillCost, TimeToLive, idle_s

_MAX_TOOLS = 256


@dataclass(slots=True)
class _Life:
    """The session's current time to live, and for which tool name it was computed."""

    tool: str | None = None
    ttl_s: float = 0.0
    is_warm: bool = False
    kept_tokens: int = 0


@scheduling_policies.register("continuum-dynamic")
class ContinuumDynamic(BasePolicy):
    """Hold for ``tau* = argmax P(tau, tool) x (T x eta + prefill seconds) - tau``.

    P: empirical CDF of the tool's return times; T: mean queueing delay of the last 100
    returns that had lost KV; eta: minus the correlation of turns done and turns ahead over
    finished sessions (1 before two lengths were seen). With at most ``num_cold`` samples of
    the tool all tools are taken together, with as few in all ``tau = ln(benefit)``, the
    optimum for returns distributed as Exp(1). Order as in ``continuum``. With host memory
    behind the GPU's, reload seconds stand in the place of prefill seconds.

    Source: Continuum, 2511.02230, equations of the TTL model, K = 100. Deviations: the last
    512 samples per tool, at most 256 tools; the tool is what the control plane says, asked
    again when it becomes known.

    Ignores: sizes against each other (they cancel in the paper's formula), CPU load.
    """

    def __init__(self, *, cost: PrefillCost | None = None, num_cold: int = 100) -> None:
        super().__init__(cost=cost)
        self.num_cold = num_cold
        self.turns_ahead = TurnsAhead()
        self._all = TimeToLive()
        self._tools: dict[str, TimeToLive] = {}
        self._delays: deque[float] = deque(maxlen=100)

    def rank(self, turn: Turn, now: float) -> Rank:
        session = turn.session
        if turn.is_running:
            return (0.0, 0.0 if turn.is_last_turn else 1.0, session.arrival_time)
        if turn.num_preemptions:
            return (1.0, 0.0, session.arrival_time)
        life = session.policy_state
        is_warm = isinstance(life, _Life) and life.is_warm
        return (2.0, 0.0 if is_warm else 1.0, session.arrival_time)

    def on_submit(self, turn: Turn, now: float) -> None:
        session = turn.session
        life = _life(session)
        if session.last_turn_finished_at is None:
            return
        gap_s = idle_s(session, now)
        life.is_warm = session.cached_tokens > 0 and gap_s <= life.ttl_s
        self._all.add(gap_s)
        name = _tool(session)
        if name and (name in self._tools or len(self._tools) < _MAX_TOOLS):
            self._tools.setdefault(name, TimeToLive()).add(gap_s)

    def on_service(self, turn: Turn, num_tokens: int, now: float) -> None:
        kept = _life(turn.session).kept_tokens
        if turn.last_service_time is None and turn.num_cached_tokens < kept:
            self._delays.append(max(0.0, now - turn.arrival_time))

    def on_finish(self, turn: Turn, now: float) -> None:
        life = _life(turn.session)
        life.tool, life.kept_tokens = None, turn.session.cached_tokens

    def on_end(self, session: Session) -> None:
        self.turns_ahead.add(session.num_turns)

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """Age of the session: the latest goes first."""
        return max(0.0, now - session.arrival_time) + 1.0

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        life, name = _life(session), _tool(session)
        if life.tool != name:
            life.tool, life.ttl_s = name, self._best_s(session, name)
        return session.num_open_turns > 0 or idle_s(session, now) < life.ttl_s

    def _best_s(self, session: Session, name: str) -> float:
        delay_s = sum(self._delays) / len(self._delays) if self._delays else 0.0
        benefit_s = self.cost.return_s(session.context_tokens, 0, session.host_tokens)
        benefit_s += delay_s * self.turns_ahead.eta
        if self._all.num_seen <= self.num_cold:
            return max(0.0, math.log(benefit_s)) if benefit_s > 0.0 else 0.0
        own = self._tools.get(name)
        samples = own if own is not None and own.num_seen > self.num_cold else self._all
        return samples.best_s(benefit_s)


def _life(session: Session) -> _Life:
    if not isinstance(session.policy_state, _Life):
        session.policy_state = _Life()
    return session.policy_state


def _tool(session: Session) -> str:
    return session.tool.tool_name if session.tool is not None else ""
