# SPDX-License-Identifier: Apache-2.0
"""How long a session will last, learned from others that began with a prompt like its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mars.core.model import ActiveSet, HeldSession, Session
from mars.core.packing import in_arrival_order
from mars.core.standing import Standing

MEMORY = 0.95
"""Share of the past kept with each session that ends: about the last 20 of a kind count."""
PRIOR_SESSIONS = 1.0
"""Weight of the mean of all kinds against a kind's own, in sessions."""
ALIKE = 1.3
"""Kinds whose expected lengths differ from the mean by less than this factor are as good as
the mean: some twenty samples tell no more."""
LONGEST = 1.5
"""Kinds are told apart up to so many times the mean: to put the longest behind the long gains
the mean little, and it is they who end last."""
STILL_TO_COME = 1.5
"""A session older than its kind usually lasts is taken to last so many times its age."""


@dataclass(slots=True)
class _Sum:
    weight: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, memory: float) -> None:
        self.weight = memory * self.weight + 1.0
        self.seconds = memory * self.seconds + seconds


class SessionLengths:
    """Expected seconds from a session's start to its end, by the octave of its first prompt.

    Agents of one kind begin alike (system prompt, tools, task), and the first prompt is all
    that is known before a session starts. Over the public traces its logarithm correlates
    with that of the length by 0.7 to 0.86 where two kinds of agents meet, and not at all
    within one kind (docs/policy.md); so kinds are told apart and members of one are not.
    O(1) an answer; memory: one entry per octave, so at most some thirty.
    """

    def __init__(self) -> None:
        self.version = 0
        """Grows whenever the answers may change."""
        self._kinds: dict[int, _Sum] = {}
        self._late: dict[int, _Sum] = {}
        self._all = _Sum()
        self._handicaps: dict[int, float] = {}

    def ended(self, first_tokens: int, seconds: float) -> None:
        """A session that began with so many tokens lasted so long."""
        self._handicaps = {}
        self.version += 1
        self._all.add(max(0.0, seconds), MEMORY)
        kind = self._kinds.setdefault(_octave(first_tokens), _Sum())
        kind.add(max(0.0, seconds), MEMORY)

    def under_way(self, ages: Iterable[tuple[int, float]]) -> None:
        """(first prompt, age in seconds) of those that run: the long ones have not ended yet."""
        self._late = {}
        late: dict[int, _Sum] = {}
        for first_tokens, age_s in ages:
            if age_s > self.expected_s(first_tokens):
                kind = late.setdefault(_octave(first_tokens), _Sum())
                kind.add(STILL_TO_COME * age_s, 1.0)
        self._late = late
        self._handicaps = {}
        self.version += 1

    def expected_s(self, first_tokens: int) -> float:
        """Seconds that a session with such a first prompt is expected to last; 0: unknown."""
        octave = _octave(first_tokens)
        weight, seconds = PRIOR_SESSIONS, PRIOR_SESSIONS * self.mean_s
        for sums in (self._kinds.get(octave), self._late.get(octave)):
            if sums is not None:
                weight += sums.weight
                seconds += sums.seconds
        return seconds / weight

    @property
    def mean_s(self) -> float:
        """Mean over recent sessions of all kinds; 0 before the first ended."""
        return self._all.seconds / self._all.weight if self._all.weight else 0.0

    def handicap(self, first_tokens: int) -> float:
        """Place among the kinds, 0 (short) .. 0.6 (long): ``expected / (expected + mean)``.

        One half while nothing is known, and for everybody where kinds do not differ.
        """
        octave = _octave(first_tokens)
        known = self._handicaps.get(octave)
        if known is None:
            known = self._handicaps[octave] = self._handicap(first_tokens)
        return known

    def _handicap(self, first_tokens: int) -> float:
        mean_s = self.mean_s
        expected_s = min(self.expected_s(first_tokens), LONGEST * mean_s)
        if mean_s <= ALIKE * expected_s and expected_s <= ALIKE * mean_s:
            return 0.5
        return expected_s / (expected_s + mean_s)


@dataclass(slots=True, frozen=True)
class _Start:
    """How a session began: its first prompt, and when it was admitted and held."""

    first_tokens: int
    admitted_at: float
    held_since: float


class ShortKindsFirst:
    """Order of held sessions: by arrival, short kinds before long ones, bounded.

    Remembers start and first prompt of each active session (give or take 64).

    Args:
        most_lead_s: most seconds that a session of a short kind may have come later and
            still go first.
        pass_share: how long one that does not fit lets others pass, in expected lengths.
    """

    def __init__(self, most_lead_s: float, pass_share: float) -> None:
        self.lengths = SessionLengths()
        self.most_lead_s = most_lead_s
        self.pass_share = pass_share
        self._started: dict[str, _Start] = {}

    def ordered(self, held: Sequence[HeldSession]) -> list[HeldSession]:
        """By ``held since + most_lead_s x handicap``."""
        return sorted(in_arrival_order(held), key=self.place)

    def place(self, held: HeldSession) -> float:
        """Place of a held session: ``held since + most_lead_s x handicap`` of its kind."""
        return self._place(held.num_prompt_tokens, held.held_since)

    def standing(self, needs: Iterable[tuple[Session, float]]) -> Standing:
        """Needs of active sessions (tokens) by their places, which they keep from when held.

        Whose start is not known stands before everybody.
        """
        amounts: list[tuple[float, float]] = []
        for session, tokens in needs:
            start = self._started.get(session.session_id)
            place = self._place(start.first_tokens, start.held_since) if start else -math.inf
            amounts.append((place, tokens))
        return Standing(amounts)

    def _place(self, first_tokens: int, since: float) -> float:
        return since + self.most_lead_s * self.lengths.handicap(first_tokens)

    def patience_s(self, held: HeldSession, most_s: float) -> float:
        """How long others that fit may pass this one; ``most_s`` where nothing is known."""
        expected_s = self.lengths.expected_s(held.num_prompt_tokens)
        return min(most_s, self.pass_share * expected_s) if expected_s > 0.0 else most_s

    def admitted(self, held: HeldSession, now: float) -> None:
        """A session starts; one that was paused has started before."""
        if not held.is_paused:
            start = _Start(held.num_prompt_tokens, now, held.held_since)
            self._started[held.session.session_id] = start

    def watched(self, active: ActiveSet, now: float) -> None:
        """Learn from sessions under way; forget those that are gone."""
        started = self._started
        if len(started) > 2 * len(active) + 64:
            started = {k: v for k, v in started.items() if k in active.sessions}
            self._started = started
        self.lengths.under_way((s.first_tokens, now - s.admitted_at) for s in started.values())

    def ended(self, session: Session, now: float) -> None:
        """A session ended."""
        start = self._started.pop(session.session_id, None)
        if start is not None and now > start.admitted_at:
            self.lengths.ended(start.first_tokens, now - start.admitted_at)


def _octave(num_tokens: int) -> int:
    return max(0, num_tokens).bit_length()
