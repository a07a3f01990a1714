# SPDX-License-Identifier: Apache-2.0
"""The one error of this layer: where the trace is wrong and what to do about it."""

from __future__ import annotations


class TraceError(ValueError):
    """A trace cannot be used as it is.

    The message reads ``FILE: line N: FIELD: what is wrong. The fix.`` with the parts that are
    known; ``source``, ``line`` and ``field`` hold them apart.
    """

    def __init__(
        self, problem: str, *, source: str = "", line: int | None = None, field: str = ""
    ) -> None:
        place = [source, f"line {line}" if line is not None else "", field]
        super().__init__(": ".join([*(part for part in place if part), problem]))
        self.problem = problem
        self.source = source
        self.line = line
        self.field = field

    def at(self, source: str, line: int | None = None) -> TraceError:
        """Return the same error with its place filled in."""
        return TraceError(
            self.problem, source=self.source or source, line=self.line or line, field=self.field
        )
