# SPDX-License-Identifier: Apache-2.0
"""Numbers, counts and times as an explanation writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def seconds(value_s: float) -> str:
    """``0.034`` -> "34 ms", ``3.21`` -> "3.2 s", ``312`` -> "5 min 12 s"."""
    if value_s < 0.0005:
        return "0 s"
    if value_s < 0.9995:
        return f"{value_s * 1000:.0f} ms"
    if value_s < 119.95:
        return f"{value_s:.1f} s"
    minutes, rest = divmod(round(value_s), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def after(value_s: float) -> str:
    """A moment, as in "+124.1 s" after arrival."""
    return f"+{value_s:.1f} s"


def share(part: float, whole: float) -> str:
    """Per cent, with "<1%" for what would round to nothing."""
    if whole <= 0.0 or part <= 0.0:
        return "0%"
    percent = 100.0 * part / whole
    return f"{percent:.0f}%" if percent >= 0.95 else "<1%"


def count(number: int, noun: str, plural: str = "") -> str:
    """As in "no turns", "1 turn", "12,000 turns"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + 's'}" if number else f"no {plural or noun + 's'}"


def price(value: float) -> str:
    """A policy's value of a block, in three digits."""
    return f"{value:.3g}"


def tally(names: Iterable[str]) -> str:
    """As in "3 x ageing, 1 x decode", the most frequent first."""
    return ", ".join(f"{number} x {name}" for name, number in Counter(names).most_common())


def sentence(*parts: str) -> str:
    """Clauses joined by semicolons; empty ones are left out."""
    return "; ".join(part for part in parts if part)
