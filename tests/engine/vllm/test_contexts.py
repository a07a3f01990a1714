# SPDX-License-Identifier: Apache-2.0
"""KV of a dead or paused context goes first: in vLLM's real scheduler, in virtual time."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.core.events import Event
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile

pytestmark = pytest.mark.vllm

COST = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost
LENGTH = 1600
"""Tokens of a prompt: 100 blocks."""


class Bench:
    """Turns one after the other, on room for three and a half of them."""

    def __init__(self, directory: Path, policy: str) -> None:
        self.events: list[Event] = []
        shape = VirtualShape(num_blocks=360)
        mars = {"policy": policy}
        self.engine = VirtualEngine(shape, COST, directory, mars, self.events.append)
        self.now = 0.0

    def turn(self, session_id: str, number: int = 0, content: str = "") -> None:
        """One turn to its end; ``content`` names other tokens than the session's own."""
        name = content or session_id
        segments = [(name, 0, LENGTH)]
        reply = (name, LENGTH, 5)
        self.engine.submit(f"{session_id}-{number}", session_id, segments, reply, self.now)
        while self.engine.has_requests:
            step_s = self.engine.plan(self.now)
            assert step_s is not None
            self.now += step_s
            self.engine.complete(self.now)
        self.engine.scheduler.check_integrity()

    def tell(self, op: str, session_id: str, **fields: Any) -> None:
        self.engine.control({"op": op, "session_id": session_id, **fields})

    def evicted(self) -> set[str]:
        return {e.session_id for e in self.events if e.kind == "kv_evicted"}


def evicted(directory: Path, op: str | None = None, session_id: str = "") -> set[str]:
    """Whose KV a fourth session takes, with room for three, after one was told of."""
    bench = Bench(directory, "mars")
    bench.now = 1.0
    for name in ("a", "b", "c"):
        bench.turn(name)
        bench.now += 0.5
    if op is not None:
        fields = {"num_kept_tokens": 160} if op == "context_reset" else {}
        bench.tell(op, session_id, **fields)
    bench.turn("d")
    return bench.evicted()


@pytest.mark.parametrize("op", ["context_reset", "session_paused"])
def test_what_is_of_no_use_is_evicted_before_what_the_policy_would_give(
    tmp_path: Path, op: str
) -> None:
    given = evicted(tmp_path)
    (spared, *_) = sorted({"a", "b", "c"} - given)
    assert evicted(tmp_path, op, spared) == {spared}


def test_a_reset_lets_go_of_held_kv_and_the_next_turn_makes_it_good_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "continuum")
    bench.turn("a")
    bench.tell(
        "tool_started",
        "a",
        tool_call_id="t",
        tool_name="x",
        queued_at=bench.now,
        expected_return_at=bench.now + 1.0,
    )
    co = bench.engine.scheduler._co
    was_held = "a" in co.held
    bench.tell("context_reset", "a", num_kept_tokens=320)
    bench.turn("b")
    assert "a" not in co.held
    session = co.sessions["a"]
    assert (session.epoch, session.gives_kv, session.cached_tokens) == (1, True, 320)
    assert co.cached.value("a", co_load(bench), bench.now) == -1.0e18
    bench.turn("a", 1, content="other")
    assert (session.gives_kv, session.cached_tokens) == (False, LENGTH)
    assert was_held


def co_load(bench: Bench) -> Any:
    return bench.engine.scheduler.load(bench.now)


def test_a_session_that_resumes_is_worth_keeping_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "mars")
    bench.turn("a")
    bench.tell("session_paused", "a")
    bench.turn("b")
    assert bench.engine.scheduler._co.sessions["a"].gives_kv
    bench.tell("session_resumed", "a")
    bench.turn("c")
    assert not bench.engine.scheduler._co.sessions["a"].gives_kv
