# SPDX-License-Identifier: Apache-2.0
"""One turn as the simulated engine holds it, in vLLM's counters."""

from __future__ import annotations

from mars.core.model import Turn
from mars.sim.blocks import Table
from mars.sim.content import Span


class Request:
    """A turn in the engine. Counters mean what they mean in vLLM's ``Request``.

    Args:
        turn: what the policies see of it.
        path: full blocks of prompt and whole reply.
        num_output_tokens: length of the reply, known to nobody but the engine model.
    """

    __slots__ = (
        "is_finished",
        "is_running",
        "max_tokens",
        "num_computed",
        "num_in_flight",
        "num_placeholders",
        "num_prompt",
        "num_stale",
        "num_tokens",
        "path",
        "position",
        "request_id",
        "session_id",
        "table",
        "turn",
    )

    def __init__(self, turn: Turn, path: tuple[Span, ...], num_output_tokens: int) -> None:
        self.turn = turn
        self.request_id = turn.request_id
        self.session_id = turn.session.session_id
        self.path = path
        self.num_prompt = turn.num_prompt_tokens
        self.num_tokens = turn.num_prompt_tokens
        """Prompt and output so far."""
        self.max_tokens = num_output_tokens
        self.num_computed = 0
        self.num_in_flight = 0
        """Tokens of planned steps whose result is still out."""
        self.num_placeholders = 0
        """Output tokens of such steps (async pipeline)."""
        self.num_stale = 0
        """Of the tokens in flight, those from before a preemption."""
        self.is_running = False
        self.is_finished = False
        self.position = 0
        """Place among the running, best first."""
        self.table = Table()


Work = tuple[Request, int, bool]
"""(request, tokens of this step, whether it samples a token)."""
