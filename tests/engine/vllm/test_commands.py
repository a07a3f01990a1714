# SPDX-License-Identifier: Apache-2.0
"""Commands that came while the engine slept are carried out before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.core.events import Event
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile

pytestmark = pytest.mark.vllm

COST = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost


class Sleeper:
    """An engine that holds one session's KV and has nothing to do."""

    def __init__(self, directory: Path) -> None:
        self.events: list[Event] = []
        shape = VirtualShape(num_blocks=160, is_async=False)
        self.engine = VirtualEngine(
            shape, COST, directory, {"policy": "continuum"}, self.events.append
        )
        self.scheduler: Any = self.engine.scheduler
        self.now = 0.0

    def submit(self, request_id: str, session_id: str, num_tokens: int) -> None:
        segments = [(session_id, 0, num_tokens)]
        self.engine.submit(request_id, session_id, segments, (session_id, num_tokens, 5), self.now)

    def run(self) -> None:
        while self.engine.has_requests:
            step_s = self.engine.plan(self.now)
            self.now += step_s or 0.001
            self.engine.complete(self.now)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    made = Sleeper(tmp_path)
    made.submit("a-0", "a", 1000)
    made.run()
    assert len(made.scheduler._retained) == 1
    made.events.clear()
    return made


def test_a_release_comes_before_the_next_turn_is_taken_in(sleeper: Sleeper) -> None:
    sleeper.engine.control({"op": "session_end", "session_id": "a"})
    assert len(sleeper.scheduler._retained) == 1  # nobody needs it: the engine sleeps on
    sleeper.submit("b-0", "b", 1700)  # does not fit beside what is held
    kinds = sleeper.kinds()
    assert kinds.index("kv_released") < kinds.index("turn_submitted")
    sleeper.run()
    assert "turn_preempted" not in sleeper.kinds()
    sleeper.scheduler.check_integrity()


def test_the_end_of_a_sessions_life_does_not_touch_its_next_one(sleeper: Sleeper) -> None:
    sleeper.engine.control({"op": "session_end", "session_id": "a"})
    sleeper.submit("a-1", "a", 1000)
    session = sleeper.scheduler._co.sessions["a"]
    assert (session.state.name, session.num_open_turns) == ("ACTIVE", 1)
    sleeper.run()
    assert "a" in sleeper.scheduler._co.sessions  # not forgotten with its first turn
