# SPDX-License-Identifier: Apache-2.0
"""How much of their first prompts sessions have in common: instructions and tool schemas."""

from __future__ import annotations

from collections import deque
from statistics import median_low

WINDOW = 8
"""Hits remembered of each kind."""


class SharedPrefixes:
    """What the first prompt of a session will find cached, learned from those before it.

    The lower median of the last ``WINDOW`` first hits of its kind, which is the octave of the
    first prompt as in :class:`~mars.core.lengths.SessionLengths`; 0 before any was seen. An agent's
    instructions and schemas are 8,000 to 21,000 tokens (CLIENTS.md, TRACES.md), held once
    for all of its sessions: whoever charges them to each admits too few.
    """

    def __init__(self) -> None:
        self._hits: dict[int, deque[int]] = {}

    def started(self, first_tokens: int, hit_tokens: int) -> None:
        """A first turn of so many tokens found that many of them cached."""
        hits = self._hits.setdefault(first_tokens.bit_length(), deque(maxlen=WINDOW))
        hits.append(min(hit_tokens, first_tokens))

    def expected_tokens(self, first_tokens: int) -> int:
        """Of a first prompt of so many tokens, how many others hold already."""
        hits = self._hits.get(first_tokens.bit_length())
        return min(median_low(hits), first_tokens) if hits else 0
