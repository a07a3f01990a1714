# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mars.core.model import Session, Turn
from mars.core.pending import PendingBlocks


def turn(name: str, prompt: int, computed: int) -> Turn:
    made = Turn(name, Session(name, 0.0), 0, 0.0, prompt)
    made.num_computed_tokens = computed
    return made


def test_a_prefill_needs_its_rest_and_a_decode_one_block() -> None:
    running = [turn("begun", 100, 64), turn("decoding", 100, 100)]
    assert PendingBlocks(16).of(running) == 3 + 1


def test_who_starts_is_added_and_progress_is_seen_when_it_is_told() -> None:
    pending, running = PendingBlocks(16), [turn("begun", 100, 64)]
    assert pending.of(running) == 3
    running.append(turn("new", 160, 0))
    assert pending.of(running) == 3 + 10
    running[0].num_computed_tokens = 100
    assert pending.of(running) == 3 + 10
    pending.changed()
    assert pending.of(running) == 1 + 10


def test_another_list_is_counted_anew() -> None:
    pending = PendingBlocks(16)
    assert pending.of([turn("a", 160, 0), turn("b", 160, 0)]) == 20
    assert pending.of([turn("c", 32, 0)]) == 2
    assert pending.of([]) == 0
