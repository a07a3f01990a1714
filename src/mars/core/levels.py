# SPDX-License-Identifier: Apache-2.0
"""Multi-level feedback: which level a turn is at, and what a level may do in one step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from mars.core.events import Event, LevelChanged
from mars.core.model import Turn


@dataclass(slots=True, frozen=True)
class Levels:
    """Levels 0 (first) .. n; the constants are those of the MARS preview.

    Attributes:
        bounds_tokens: upper bound (inclusive) of remaining prefill of each level but the last.
        quanta_tokens: most prefill tokens of a turn in one step, per level.
        ageing_s: waiting that lifts a turn by one level.
    """

    bounds_tokens: tuple[int, ...] = (2048, 8192, 32768)
    quanta_tokens: tuple[int, ...] = (2048, 1024, 512, 256)
    ageing_s: float = 30.0

    def __post_init__(self) -> None:
        if len(self.quanta_tokens) != len(self.bounds_tokens) + 1:
            raise ValueError("levels: quanta_tokens needs one entry more than bounds_tokens")
        if list(self.bounds_tokens) != sorted(self.bounds_tokens):
            raise ValueError("levels: bounds_tokens must ascend")
        if self.ageing_s <= 0 or min(self.quanta_tokens) <= 0:
            raise ValueError("levels: ageing_s and quanta_tokens must be positive")

    @property
    def last(self) -> int:
        """The number of the last level."""
        return len(self.bounds_tokens)

    def of(self, num_tokens: int) -> int:
        """The level of so many tokens of remaining prefill."""
        return bisect_left(self.bounds_tokens, num_tokens)

    def demoted(self, level: int) -> int:
        """The level below, or the last."""
        return min(level + 1, self.last)

    def effective(self, feedback: int, remaining_tokens: int, waited_s: float) -> int:
        """``max(0, max(feedback, level of the remaining prefill) - floor(waited / ageing))``."""
        level = bisect_left(self.bounds_tokens, remaining_tokens)
        level = max(level, feedback)
        if not level:
            return 0
        steps = max(0.0, waited_s) // self.ageing_s
        # Compared as floats: an endless wait must not become an int.
        return 0 if steps >= level else level - int(steps)

    def quantum(self, level: int) -> int:
        """Most prefill tokens in one step at this level."""
        quanta = self.quanta_tokens
        return quanta[level] if 0 <= level < len(quanta) else quanta[-1 if level > 0 else 0]


class LevelWatch:
    """Tells when a turn's level is not the one last told.

    Waiting turns are looked at when they are served, not at each step: ageing is told when
    it took effect, and waiting costs nothing.

    Args:
        level: present level of a turn (``SchedulingPolicy.level``).
        emit: receives :class:`LevelChanged`.
    """

    def __init__(self, level: Callable[[Turn, float], int], emit: Callable[[Event], None]) -> None:
        self._level = level
        self._emit = emit

    def look(self, turn: Turn, reason: str, now: float) -> None:
        """Tell a change since the last look, with this reason."""
        level = self._level(turn, now)
        if level != turn.level:
            self._tell(turn, level, reason, now)

    def look_served(self, turn: Turn, now: float) -> None:
        """Tell a change that a served chunk made."""
        level = self._level(turn, now)
        if level == turn.level:
            return
        if level > turn.level:
            reason = "quantum"
        else:
            reason = "decode" if turn.num_computed_tokens >= turn.num_tokens else "progress"
        self._tell(turn, level, reason, now)

    def _tell(self, turn: Turn, level: int, reason: str, now: float) -> None:
        before, turn.level = turn.level, level
        self._emit(
            LevelChanged(
                time=now,
                session_id=turn.session.session_id,
                level_from=before,
                level_to=level,
                reason=reason,
            )
        )
