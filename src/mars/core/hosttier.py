# SPDX-License-Identifier: Apache-2.0
"""The engine before host memory: who goes first, whose blocks are being copied, who still fits."""

from __future__ import annotations

from dataclasses import dataclass

from mars.core.model import Turn

ROOMY = 2.0
"""Host memory of so many times the pool holds what the GPU does and as much again. Chosen."""


def is_roomy(host: float, pool: float) -> bool:
    """Whether host memory keeps whoever the GPU has no room for; both in tokens, or in blocks."""
    return pool > 0 and host >= ROOMY * pool


class Loading(dict[str, Turn]):
    """Request id -> turn that waits and holds blocks, from its load's begin to its start."""

    def begin(self, turn: Turn, num_tokens: int) -> None:
        """It has blocks for so many tokens; what it lacks of them is being copied."""
        turn.is_loading = True
        turn.num_computed_tokens = num_tokens
        self[turn.request_id] = turn

    def end(self, turn: Turn) -> None:
        """It starts, left, or its copy failed; nothing where it was not loading."""
        if turn.is_loading:
            turn.is_loading = False
            del self[turn.request_id]


@dataclass(slots=True, frozen=True)
class TierOrder:
    """Who has the GPU's memory first where nothing is lost by going without: host memory has it.

    ``deadline = session arrival + s_per_token x tokens of the turn - s_per_turn x turns done``,
    the last at most ``most_s``. A turn keeps its tokens from others while it decodes, so short
    contexts go first, and of sessions of one age those that have more turns behind them and
    are nearer to their end. Chosen by simulation (docs/tier.md).
    """

    s_per_token: float = 0.03
    s_per_turn: float = 60.0
    most_s: float = 3600.0

    def handicap_s(self, turn: Turn) -> float:
        """Seconds between the session's arrival and the turn's deadline; may be negative."""
        done_s = min(self.most_s, self.s_per_turn * turn.turn_index)
        return self.s_per_token * turn.num_tokens - done_s
