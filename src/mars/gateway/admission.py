# SPDX-License-Identifier: Apache-2.0
"""Sessions outside and inside the engine: who is held, who is active, who is let in.

A session is held by holding its first request. An :class:`AdmissionPolicy` is asked at
each arrival, each end and each control interval; turns of an active session are never
held again. When a request has been held as long as its client bears, it is answered 503
and the session keeps its place for the retry.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mars.config import GatewayConfig
from mars.core import events as ev
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, SessionState
from mars.core.policy import AdmissionPolicy
from mars.gateway.identity import Identity
from mars.gateway.openai import ApiError, retry_later

MAX_HELD = 10_000
"""Sessions held at once; more are turned away (issue budget)."""
RETRY_AFTER_S = 20
PLACE_KEPT_S = 120.0
"""How long an unattended place in the queue is kept: agents that retry come back within
the 64 s of the longest known back-off (OpenHands), and need some slack (chosen)."""
GENERATIONS_KEPT = 20_000
DECISION_SHARE = 0.1
LONG_QUEUE = 256
"""With more than so many held, decisions take at most this share of the time; the rest
wait for the tick."""

Emit = Callable[[ev.Event], object]
Observe = Callable[[str, float], object]
Beat = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Place:
    """A held session's place in the queue, and the requests that wait on it."""

    held: HeldSession
    waiters: list[asyncio.Future[Session]] = field(default_factory=list[asyncio.Future[Session]])
    is_announced: bool = False
    away_since: float | None = None


class Admission:
    """The queue of held sessions and the set of active ones.

    Args:
        policy: decides how many sessions are active, and which goes next.
        config: budgets and intervals.
        load: the present load of both resources; None fields are unknown.
        is_stale: whether engine telemetry is too old to let the window grow.
        emit: receives session and window events.
        clock: monotonic seconds.
        observe: receives (question, seconds) of each policy call.
        max_held: sessions held at once.
    """

    def __init__(
        self,
        policy: AdmissionPolicy,
        config: GatewayConfig,
        *,
        load: Callable[[float], Load],
        is_stale: Callable[[float], bool],
        emit: Emit,
        clock: Callable[[], float],
        observe: Observe = lambda question, seconds: None,
        max_held: int = MAX_HELD,
    ) -> None:
        self.policy = policy
        self.active = ActiveSet()
        self.is_draining = False
        self._config = config
        self._load = load
        self._is_stale = is_stale
        self._emit = emit
        self._clock = clock
        self._observe = observe
        self._max_held = max_held
        self._places: dict[str, Place] = {}
        self._generations: OrderedDict[str, int] = OrderedDict()
        self._window: float | None = None
        self._frozen_at: int | None = None
        self._next_decision_at = 0.0

    @property
    def num_held(self) -> int:
        """Sessions that wait outside the engine, attended or not."""
        return len(self._places)

    def places(self) -> list[Place]:
        """Held sessions in order of arrival."""
        return list(self._places.values())

    def window(self) -> float:
        """How many sessions may be active now."""
        now = self._clock()
        return self.policy.window(self._load(now), now)

    # --- the life of a session -------------------------------------------------------
    async def enter(
        self, identity: Identity, num_prompt_tokens: int, beat: Beat | None = None
    ) -> Session:
        """Return when the session may run; at once if it is active already.

        Args:
            identity: whose request it is.
            num_prompt_tokens: estimate of its prompt.
            beat: sends a sign of life to the client, asked for each ``keepalive_s`` of a
                hold; such a hold needs no budget.

        Raises:
            ApiError: 503 when the hold budget is spent, the queue full or the gateway draining.
        """
        session = self.active.sessions.get(identity.session_id)
        if session is not None:
            return session
        place = self._place(identity, num_prompt_tokens)
        waiter: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        place.waiters.append(waiter)
        place.away_since = None
        self.decide()
        if waiter.done():
            return waiter.result()
        self._announce(place)
        return await self._wait(place, waiter, beat)

    def knows(self, session_id: str) -> bool:
        """Whether the session is active or held."""
        return session_id in self.active.sessions or session_id in self._places

    def restore(self, session: Session, held_since: float | None, num_tokens: int) -> None:
        """Take over a session of an earlier gateway: active, or held and its client away."""
        now = self._clock()
        if held_since is None:
            self.active.sessions[session.session_id] = session
            return
        held = HeldSession(session, held_since, num_tokens, deadline=now + PLACE_KEPT_S)
        self._places[session.session_id] = Place(held, is_announced=True, away_since=now)

    def begin_turn(self, session: Session) -> None:
        """A request of an active session goes to the engine."""
        session.num_turns += 1
        session.num_open_turns += 1
        session.activity = Activity.REASONING
        session.tool = None

    def end_turn(self, session: Session, end_reason: str | None = None) -> None:
        """Its reply is complete or given up; with a reason the session ends, too.

        A late reply of an earlier life changes nothing in the present one.
        """
        now = self._clock()
        session.num_open_turns -= 1
        session.last_turn_finished_at = now
        if session.num_open_turns == 0:
            session.activity = Activity.ACTING
        if end_reason and self.active.sessions.get(session.session_id) is session:
            self.end(session.session_id, end_reason)

    def end(self, session_id: str, reason: str) -> bool:
        """End an active or held session; False when there is none of that id."""
        now = self._clock()
        place = self._places.pop(session_id, None)
        session = self.active.sessions.pop(session_id, None)
        if place is not None:
            session = place.held.session
            for waiter in place.waiters:
                if not waiter.done():
                    waiter.set_exception(ApiError(409, f"session {session_id!r} was ended"))
        elif session is not None:
            self.policy.on_end(session, now)
        if session is None:
            return False
        session.state = SessionState.ENDED
        self._generations[session_id] = session.generation
        self._generations.move_to_end(session_id)
        if len(self._generations) > GENERATIONS_KEPT:
            self._generations.popitem(last=False)
        self._emit(
            ev.SessionEnded(
                time=now,
                session_id=session_id,
                generation=session.generation,
                reason=reason,
                num_turns=session.num_turns,
            )
        )
        self.decide()
        return True

    def drain(self) -> None:
        """Hold and admit nobody any more; those held are asked to come back."""
        self.is_draining = True
        for session_id, place in list(self._places.items()):
            for waiter in place.waiters:
                if not waiter.done():
                    waiter.set_exception(_draining())
            place.waiters.clear()
            self.end(session_id, "drained")

    # --- decisions -------------------------------------------------------------------
    def decide(self, *, is_due: bool = False) -> None:
        """Ask the policy which held sessions may run now, and let them.

        Left to the next tick when the queue is so long that asking at each arrival would
        take more than its share of the time; ``is_due`` asks in any case.
        """
        now = self._clock()
        if self.is_draining or not (is_due or now >= self._next_decision_at):
            return
        waiting = [place.held for place in self._places.values() if place.waiters]
        if not waiting:
            return
        chosen = self.policy.admit(waiting, self.active, self._load(now), now)
        took_s = self._clock() - now
        if len(waiting) > LONG_QUEUE:
            self._next_decision_at = now + took_s / DECISION_SHARE
        self._observe("admit", took_s)
        if self._frozen_at is not None:
            chosen = chosen[: max(0, self._frozen_at - len(self.active))]
        mode = str(self.policy.state().get("mode", "fcfs")) if chosen else ""
        for session_id in chosen:
            if session_id in self._places:
                self._admit(session_id, mode, now)

    def tick(self) -> None:
        """One control interval passed: move the window, let in, forget the absent."""
        now = self._clock()
        if self._places or self.active.sessions:
            self._move_window(now)
        self._forget_absent(now)
        self.decide(is_due=True)

    def _move_window(self, now: float) -> None:
        load = self._load(now)
        if not self._is_stale(now):
            self._frozen_at = None
        elif self._frozen_at is None:
            self._frozen_at = len(self.active)
        self.policy.on_tick(self.active, load, now)
        self._observe("on_tick", self._clock() - now)
        window = self.policy.window(load, now)
        if window == self._window or (self._window is None and window == math.inf):
            return
        self._window = window
        state = self.policy.state()
        self._emit(
            ev.WindowChanged(
                time=now,
                window=window,
                num_active=len(self.active),
                num_held=len(self._places),
                is_kv_pressed=bool(state.get("is_kv_pressed", False)),
                is_cpu_pressed=bool(state.get("is_cpu_pressed", False)),
                reason="stale" if self._frozen_at is not None else str(state.get("reason", "")),
            )
        )

    def _forget_absent(self, now: float) -> None:
        for session_id, place in list(self._places.items()):
            if place.away_since is not None and now - place.away_since > PLACE_KEPT_S:
                self.end(session_id, "disconnected")
        limit = now - self._config.idle_session_s
        idle = [
            s.session_id
            for s in self.active.sessions.values()
            if s.num_open_turns == 0
            and (s.last_turn_finished_at or s.arrival_time) < limit
            and s.tool is None
        ]
        for session_id in idle:
            self.end(session_id, "idle")

    # --- places ----------------------------------------------------------------------
    def _place(self, identity: Identity, num_prompt_tokens: int) -> Place:
        if self.is_draining:
            raise _draining()
        place = self._places.get(identity.session_id)
        if place is not None:
            return place
        if len(self._places) >= self._max_held:
            raise retry_later(
                f"{self._max_held} sessions are held already; come back later", RETRY_AFTER_S
            )
        now = self._clock()
        session = Session(
            identity.session_id,
            arrival_time=now,
            generation=self._generations.get(identity.session_id, -1) + 1,
            parent=identity.parent,
            state=SessionState.HELD,
        )
        held = HeldSession(
            session,
            held_since=now,
            num_prompt_tokens=num_prompt_tokens,
            deadline=now + self._config.hold_budget_s,
        )
        place = self._places[identity.session_id] = Place(held)
        self._emit(
            ev.SessionArrived(
                time=now,
                session_id=identity.session_id,
                generation=session.generation,
                parent=identity.parent,
                num_prompt_tokens=num_prompt_tokens,
            )
        )
        return place

    def _announce(self, place: Place) -> None:
        if place.is_announced:
            return
        place.is_announced = True
        window = self.window()
        self._emit(
            ev.SessionHeld(
                time=self._clock(),
                session_id=place.held.session.session_id,
                num_held=len(self._places),
                window=-1 if window == math.inf else int(window),
            )
        )

    def _admit(self, session_id: str, mode: str, now: float) -> None:
        place = self._places.pop(session_id)
        session = place.held.session
        session.state = SessionState.ACTIVE
        session.context_tokens = place.held.num_prompt_tokens
        self.active.sessions[session_id] = session
        self._emit(
            ev.SessionAdmitted(
                time=now,
                session_id=session_id,
                held_s=now - place.held.held_since,
                mode=mode,
                num_active=len(self.active),
            )
        )
        for waiter in place.waiters:
            if not waiter.done():
                waiter.set_result(session)

    async def _wait(
        self, place: Place, waiter: asyncio.Future[Session], beat: Beat | None
    ) -> Session:
        try:
            if beat is not None:
                while not waiter.done():
                    await asyncio.wait((waiter,), timeout=self._config.keepalive_s)
                    if not waiter.done():
                        await beat()
                return waiter.result()
            async with asyncio.timeout(self._config.hold_budget_s):
                return await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return waiter.result()  # let in at the last moment
            self._leave(place, waiter)
            place.away_since = self._clock()
            raise retry_later(
                f"session {place.held.session.session_id!r} was held for "
                f"{self._config.hold_budget_s:g} s because the server is full; it keeps its "
                "place: send the same request again",
                RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._abandon(place, waiter)
            raise

    def _leave(self, place: Place, waiter: asyncio.Future[Session]) -> None:
        if waiter in place.waiters:
            place.waiters.remove(waiter)

    def _abandon(self, place: Place, waiter: asyncio.Future[Session]) -> None:
        """The client went away while held: its place is free for others."""
        self._leave(place, waiter)
        session = place.held.session
        is_known = (
            self._places.get(session.session_id) is place
            or self.active.sessions.get(session.session_id) is session
        )
        if is_known and not place.waiters and session.num_turns == 0:
            self.end(session.session_id, "disconnected")


def _draining() -> ApiError:
    return retry_later("the gateway is shutting down; send the request again", RETRY_AFTER_S)
