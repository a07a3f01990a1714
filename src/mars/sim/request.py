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
        "holds_blocks",
        "is_finished",
        "is_loading",
        "is_prefilling",
        "is_running",
        "last_step",
        "max_tokens",
        "num_computed",
        "num_in_flight",
        "num_placeholders",
        "num_prompt",
        "num_stale",
        "num_stored",
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
        self.last_step = 0
        """Number of the last step it was in."""
        self.num_stored = 0
        """Leading blocks that were offered to host memory."""
        self.holds_blocks = False
        """It waits, and has blocks: they are copied from host memory, or were."""
        self.is_loading = False
        """They still are."""
        self.is_prefilling = False
        """Admitted with more than one chunk to compute, and not done with them."""
        self.is_running = False
        self.is_finished = False
        self.position = 0
        """Place among the running, best first."""
        self.table = Table()


Work = tuple[Request, int, bool]
"""(request, tokens of this step, whether it samples a token)."""
