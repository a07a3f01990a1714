# SPDX-License-Identifier: Apache-2.0
"""Sessions outside and inside the engine: who is held, who is active, who is let in.

A session is held by holding its first request. An :class:`AdmissionPolicy` is asked at
each arrival, each end and each control interval. Turns of an active session are never
held again, unless the policy pauses it under overload (:mod:`mars.core.pauses`). A session
whose parent is active is let in at once: its parent waits for it. When a request has been
held as long as its client bears, it is answered 503 and the session keeps its place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from mars.config import GatewayConfig
from mars.core import events as ev
from mars.core.model import ActiveSet, Activity, HeldSession, Load, Session, SessionState
from mars.core.pauses import Pauses
from mars.core.policy import AdmissionPolicy
from mars.gateway.identity import Identity
from mars.gateway.lives import Lives
from mars.gateway.openai import ApiError, retry_later
from mars.gateway.places import PLACE_KEPT_S, Beat, HoldSpentError, Place, Places
from mars.gateway.tenants import Tenants
from mars.gateway.window import WindowWatch

MAX_HELD = 10_000
"""Sessions held at once; more are turned away (issue budget)."""
RETRY_AFTER_S = 20
DECISION_SHARE = 0.1
LONG_QUEUE = 256
"""With more than so many held, decisions take at most this share of the time; the rest
wait for the tick."""
TOOL_IDLE_FACTOR = 6
"""A session in a tool is given up after so many times ``idle_session_s``: its client may have
died in the middle of it, and nobody would ever say so (chosen: an hour by default)."""

Emit = Callable[[ev.Event], object]
Observe = Callable[[str, float], object]


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
        tenants: weights and limits.
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
        tenants: Tenants | None = None,
        max_held: int = MAX_HELD,
    ) -> None:
        self.policy = policy
        self.active = ActiveSet()
        self.is_draining = False
        self.config = config
        self._tenants = tenants or Tenants()
        self._load = load
        self._emit = emit
        self._clock = clock
        self._observe = observe
        self._max_held = max_held
        self.held = Places(clock)
        self.pauses = Pauses()
        self.window_watch = WindowWatch(is_stale, emit)
        self._lives = Lives()
        self._next_decision_at = 0.0

    @property
    def num_held(self) -> int:
        """Sessions that wait outside the engine, attended or not."""
        return len(self.held)

    def places(self) -> list[Place]:
        """Held sessions in order of arrival."""
        return list(self.held)

    def window(self) -> float:
        """How many sessions may be active now."""
        now = self._clock()
        return self.policy.window(self._load(now), now)

    # --- the life of a session -------------------------------------------------------
    async def enter(
        self,
        identity: Identity,
        num_prompt_tokens: int,
        beat: Beat | None = None,
        budget_s: float | None = None,
    ) -> Session:
        """Return when the session may run; at once if it is active already.

        Args:
            identity: whose request it is.
            num_prompt_tokens: estimate of its prompt.
            beat: sends a sign of life to the client, asked for each ``keepalive_s`` of a hold.
            budget_s: how long the client bears to be held; None: without end.

        Raises:
            ApiError: 503 when the hold budget is spent, the queue full or the gateway draining;
                429 above a limit of the tenant; 403 for a session of another one.
        """
        if self.tenant_of(identity.session_id) not in {None, identity.tenant}:
            raise ApiError(
                403, f"session {identity.session_id!r} is another tenant's: choose another id"
            )
        session = self.active.sessions.get(identity.session_id)
        if session is not None:
            self._tenants.check_turn(session.tenant, self.active)
            return session
        above = self.active.sessions.get(identity.parent or "")
        is_child = above is not None and above.tenant == identity.tenant
        if is_child:  # not held, so its limit is that of turns
            self._tenants.check_turn(identity.tenant, self.active)
        place = self._place(identity, num_prompt_tokens)
        waiter = self.held.attend(place)
        if is_child:
            self._admit(identity.session_id, "child", self._clock())
        else:
            self.decide()
        if waiter.done():
            return waiter.result()
        self._announce(place)
        try:
            return await self.held.wait(
                place, waiter, beat, keepalive_s=self.config.keepalive_s, budget_s=budget_s
            )
        except HoldSpentError:
            raise retry_later(
                f"session {identity.session_id!r} was held for {budget_s:g} s because the "
                "server is full; it keeps its place: send the same request again",
                RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._abandon(place, waiter)
            raise

    def knows(self, session_id: str) -> bool:
        """Whether the session is active or held."""
        return session_id in self.active.sessions or session_id in self.held

    def tenant_of(self, session_id: str) -> str | None:
        """Whose active or held session it is; None: nobody's."""
        place = self.held.get(session_id)
        session = place.held.session if place else self.active.sessions.get(session_id)
        return session.tenant if session else None

    def restore(self, session: Session, held_since: float | None, num_tokens: int) -> None:
        """Take over a session of an earlier gateway: active, or held and its client away."""
        now = self._clock()
        session.weight = self._tenants.weight(session.tenant)
        if held_since is None:
            self.active.sessions[session.session_id] = session
            return
        held = HeldSession(session, held_since, num_tokens, deadline=now + PLACE_KEPT_S)
        place = self.held.add(held)
        place.is_announced = True
        self.held.go_away(place)

    def begin_turn(self, session: Session, *, is_side: bool = False) -> None:
        """A request of an active session goes to the engine; a side call is no step of it."""
        session.num_open_turns += 1
        if is_side:
            return
        session.num_turns += 1
        session.activity = Activity.REASONING
        session.has_answered = False
        session.tool = None

    def end_turn(
        self, session: Session, end_reason: str | None = None, *, is_side: bool = False
    ) -> None:
        """Its reply is complete or given up; with a reason the session ends, too.

        A late reply of an earlier life changes nothing in the present one.
        """
        session.num_open_turns -= 1
        if not is_side:
            session.last_turn_finished_at = self._clock()
            if session.num_open_turns == 0:
                session.activity = Activity.ACTING
        if self.active.sessions.get(session.session_id) is not session:
            return
        if end_reason:
            self.end(session.session_id, end_reason)
        elif session.is_pausing and session.num_open_turns == 0:
            self._pause(session)

    def end(self, session_id: str, reason: str) -> bool:
        """End an active or held session; False when there is none of that id."""
        now = self._clock()
        place = self.held.pop(session_id)
        session = self.active.sessions.pop(session_id, None)
        if place is not None:
            session = place.held.session
            for waiter in place.waiters:
                if not waiter.done():
                    waiter.set_exception(ApiError(409, f"session {session_id!r} was ended"))
        if session is not None and session.num_turns:
            self.policy.on_end(session, now)
        if session is None:
            return False
        self._lives.ended(session)
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
        for place in self.places():
            for waiter in place.waiters:
                if not waiter.done():
                    waiter.set_exception(_draining())
            place.waiters.clear()
            self.end(place.session_id, "drained")

    # --- decisions -------------------------------------------------------------------
    def decide(self, *, is_due: bool = False) -> None:
        """Ask the policy which held sessions may run now, and let them.

        Left to the next tick when the queue is so long that asking at each arrival would
        take more than its share of the time; ``is_due`` asks in any case.
        """
        now = self._clock()
        if self.is_draining or not (is_due or now >= self._next_decision_at):
            return
        waiting = self._tenants.queue(self.held.candidates(), self.active)
        if not waiting:
            return
        chosen = self.policy.admit(waiting, self.active, self._load(now), now)
        took_s = self._clock() - now
        if len(waiting) > LONG_QUEUE:
            self._next_decision_at = now + took_s / DECISION_SHARE
        self._observe("admit", took_s)
        chosen = chosen[: self.window_watch.room(self.active)]
        overdue = self.pauses.overdue((p.held for p in self.held.paused.values()), now)
        mode = str(self.policy.state().get("mode", "fcfs")) if chosen else ""
        for session_id in (*overdue, *chosen):
            if session_id in self.held:
                self._admit(session_id, mode, now)

    def tick(self) -> None:
        """One control interval passed: move the window, let in, forget the absent."""
        now = self._clock()
        if self.held or self.active.sessions:
            self._move_window(now)
        self._forget_absent(now)
        self.decide(is_due=True)

    def _move_window(self, now: float) -> None:
        load = self._load(now)
        self.window_watch.move(self.policy, self.active, load, len(self.held), now)
        if self.window_watch.frozen_at is None:  # nobody is paused on guesswork
            for session in self.pauses.choose(self.policy, self.active, load, now):
                self._pause(session)
        self._observe("on_tick", self._clock() - now)

    def _forget_absent(self, now: float) -> None:
        for session_id in self.held.absent(PLACE_KEPT_S):
            self.end(session_id, "disconnected")
        between = [s for s in self.active.sessions.values() if s.num_open_turns == 0]
        between += [p.held.session for p in self.held.paused.values() if not p.waiters]
        idle_s = self.config.idle_session_s
        for session in between:
            away_s = now - (session.last_turn_finished_at or session.arrival_time)
            if away_s > (idle_s if session.tool is None else TOOL_IDLE_FACTOR * idle_s):
                self.end(session.session_id, "idle")
            elif session.has_answered and away_s > self.config.final_answer_s:
                self.end(session.session_id, "final_answer")

    # --- places ----------------------------------------------------------------------
    def _place(self, identity: Identity, num_prompt_tokens: int) -> Place:
        if self.is_draining:
            raise _draining()
        place = self.held.get(identity.session_id)
        if place is not None:
            return place
        if len(self.held) >= self._max_held and (absent := self.held.absent(0.0)):
            self.end(absent[0], "disconnected")
        if len(self.held) >= self._max_held:
            raise retry_later(
                f"{self._max_held} sessions are held already; come back later", RETRY_AFTER_S
            )
        self._tenants.check_hold(identity.tenant, (p.held.session for p in self.held))
        now = self._clock()
        session = self._lives.begin(identity, self._tenants.weight(identity.tenant), now)
        place = self.held.add(HeldSession(session, now, num_prompt_tokens))
        self._emit(
            ev.SessionArrived(
                time=now,
                session_id=identity.session_id,
                generation=session.generation,
                tenant=session.tenant,
                weight=session.weight,
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
                num_held=len(self.held),
                window=-1 if window == math.inf else int(window),
            )
        )

    def _admit(self, session_id: str, mode: str, now: float) -> None:
        place = self.held.pop(session_id)
        assert place is not None
        session = place.held.session
        session.state = SessionState.ACTIVE
        self.active.sessions[session_id] = session
        if place.held.is_paused:
            self._emit(
                ev.SessionResumed(
                    time=now,
                    session_id=session_id,
                    paused_s=self.pauses.resume(place.held, now),
                    waited_s=0.0 if place.waits_since is None else now - place.waits_since,
                    num_active=len(self.active),
                )
            )
        else:
            session.context_tokens = place.held.num_prompt_tokens
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

    def _pause(self, session: Session) -> None:
        now = self._clock()
        self.held.add(self.pauses.stop(session, self.active, now))
        self._emit(
            ev.SessionPaused(
                time=now,
                session_id=session.session_id,
                context_tokens=session.context_tokens,
                num_active=len(self.active),
            )
        )

    def _abandon(self, place: Place, waiter: asyncio.Future[Session]) -> None:
        """The client went away while held. It may only have lost patience: it keeps its place."""
        self.held.leave(place, waiter)
        session = place.held.session
        is_new = session.num_turns == 0 and not place.waiters
        if is_new and self.active.sessions.get(session.session_id) is session:
            self.end(session.session_id, "disconnected")  # let in at the same moment


def _draining() -> ApiError:
    return retry_later("the gateway is shutting down; send the request again", RETRY_AFTER_S)
