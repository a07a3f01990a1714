# SPDX-License-Identifier: Apache-2.0
"""The plug-in in vLLM's real scheduler, in virtual time: order, memory, events."""

import heapq
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from mars.core.cost import CostModel
from mars.core.events import Event
from mars.core.model import Turn
from mars.core.policies.mars import Mars
from mars.core.policy import Rank, scheduling_policies
from mars.engine.vllm.integrity import check_integrity
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import VirtualEngine, VirtualShape
from mars.profiles import load_profile

pytestmark = pytest.mark.vllm

COST: CostModel = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost


class Closed:
    """Closed-loop sessions over one engine; checks the block accounting as it goes."""

    def __init__(
        self,
        directory: Path,
        num_blocks: int,
        mars: dict[str, Any] | None,
        *,
        is_async: bool = False,
    ) -> None:
        self.events: list[Event] = []
        shape = VirtualShape(num_blocks=num_blocks, is_async=is_async)
        self.engine = VirtualEngine(shape, COST, directory, mars, self.events.append)
        self.finished_at: dict[str, float] = {}

    def run(self, num_sessions: int, num_turns: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        due: list[tuple[float, str, int, int]] = []
        for index in range(num_sessions):
            heapq.heappush(due, (rng.uniform(0, 3), f"s{index}", 0, rng.randint(300, 3000)))
        now = 0.0
        lengths: dict[str, int] = {}
        ends: list[tuple[float, float]] = []
        engine = self.engine
        while due or engine.has_requests:
            while due and due[0][0] <= now:
                _, session, turn, num_new = heapq.heappop(due)
                prompt = lengths.get(session, 0) + num_new
                reply = rng.randint(5, 60)
                lengths[session] = prompt + reply
                segments = [(session, 0, prompt)]
                engine.submit(f"{session}-{turn}", session, segments, (session, prompt, reply), now)
            step_s = engine.plan(now) if engine.has_requests else None
            if step_s is None and not ends:
                now = max(now + 0.001, due[0][0]) if due else now + 0.001
                assert now < 600, "the engine stands still"
                continue
            if step_s is not None:
                ends.append((now + step_s, step_s))
            now = ends.pop(0)[0]
            for request_id in engine.complete(now):
                session, turn = request_id.split("-")
                self.finished_at[request_id] = now
                if int(turn) + 1 < num_turns:
                    tool_s = rng.uniform(0.05, 4)
                    heapq.heappush(
                        due, (now + tool_s, session, int(turn) + 1, rng.randint(50, 900))
                    )
            self.check_integrity()

    def check_integrity(self) -> None:
        scheduler = self.engine.scheduler
        if isinstance(scheduler, MarsScheduler):
            scheduler.check_integrity()
        else:
            check_integrity(scheduler)


def names() -> list[str]:
    return scheduling_policies.names()


@pytest.mark.parametrize("is_async", [False, True])
def test_fcfs_under_the_plug_in_is_stock_vllm_step_for_step(tmp_path: Path, is_async: bool) -> None:
    stock = Closed(tmp_path, 500, None, is_async=is_async)
    ours = Closed(tmp_path, 500, {"policy": "fcfs"}, is_async=is_async)
    stock.run(12, 4)
    ours.run(12, 4)
    assert ours.engine.num_steps == stock.engine.num_steps
    assert ours.finished_at == stock.finished_at


@pytest.mark.parametrize("policy", names())
def test_no_block_is_lost_and_every_turn_ends_under_pressure(tmp_path: Path, policy: str) -> None:
    closed = Closed(tmp_path, 420, {"policy": policy})
    closed.run(14, 4, seed=3)
    assert len(closed.finished_at) == 14 * 4
    kinds = Counter(event.kind for event in closed.events)
    assert kinds["turn_submitted"] == kinds["turn_finished"] == kinds["first_token"] == 56
    assert kinds["turn_started"] == 56
    assert kinds["kv_retained"] >= kinds["kv_released"]


@pytest.mark.parametrize("policy", ["mars-paper", "mars"])
def test_the_async_pipeline_ends_every_turn_too(tmp_path: Path, policy: str) -> None:
    closed = Closed(tmp_path, 420, {"policy": policy}, is_async=True)
    closed.run(14, 4, seed=5)
    assert len(closed.finished_at) == 14 * 4


def test_the_control_plane_releases_the_kv_of_an_ended_session(tmp_path: Path) -> None:
    closed = Closed(tmp_path, 420, {"policy": "continuum"})
    closed.run(1, 1)
    scheduler: Any = closed.engine.scheduler
    assert len(scheduler._retained) == 1
    closed.engine.control({"op": "session_end", "session_id": "s0"})
    closed.engine.plan(closed.engine.now)
    assert len(scheduler._retained) == 0
    released = [e for e in closed.events if e.kind == "kv_released"]
    assert [e.reason for e in released] == ["ended"]  # type: ignore[attr-defined]


def test_resetting_the_prefix_cache_lets_go_of_what_is_retained(tmp_path: Path) -> None:
    closed = Closed(tmp_path, 420, {"policy": "continuum"})
    closed.run(1, 1)
    assert closed.engine.scheduler.reset_prefix_cache()
    closed.check_integrity()


def test_an_unknown_setting_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="polcy"):
        Closed(tmp_path, 420, {"polcy": "mars"})


def test_an_unknown_policy_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown scheduling policy 'marz'.*fcfs.*mars-paper"):
        Closed(tmp_path, 420, {"policy": "marz"})


class OldestLast(Mars):
    """An operator's own policy, found by its dotted path."""

    def rank(self, turn: Turn, now: float) -> Rank:
        return (-turn.session.arrival_time,)


def test_an_operators_own_policy_is_found_by_its_path(tmp_path: Path) -> None:
    closed = Closed(tmp_path, 420, {"policy": f"{__name__}.OldestLast"})
    closed.run(10, 3, seed=2)
    assert len(closed.finished_at) == 10 * 3
    scheduler: Any = closed.engine.scheduler
    assert isinstance(scheduler._co.policy, OldestLast)
    named = Closed(tmp_path, 420, {"policy": "mars"})
    named.run(10, 3, seed=2)
    assert named.finished_at != closed.finished_at


@pytest.mark.parametrize("is_running", [False, True])
def test_an_abort_lets_go_of_what_was_held_for_the_session(
    tmp_path: Path, is_running: bool
) -> None:
    # A client that goes away makes vLLM abort its turn: nobody comes back for the KV.
    closed = Closed(tmp_path, 420, {"policy": "infercept"})
    engine = closed.engine
    closed.run(1, 1)
    scheduler: Any = engine.scheduler
    assert len(scheduler._retained) == 1
    engine.submit("s0-1", "s0", [("s0", 0, 4000)], ("s0", 4000, 5), engine.now)
    if is_running:
        engine.plan(engine.now)
    scheduler.finish_requests("s0-1", RequestStatus.FINISHED_ABORTED)
    assert len(scheduler._retained) == 0
    closed.check_integrity()
    reasons = [e.reason for e in closed.events if e.kind == "kv_released"]  # type: ignore[attr-defined]
    assert reasons == ["returned" if is_running else "aborted"]


def test_an_abort_beside_another_open_turn_keeps_what_is_held(tmp_path: Path) -> None:
    closed = Closed(tmp_path, 420, {"policy": "infercept"})
    engine = closed.engine
    closed.run(1, 1)
    scheduler: Any = engine.scheduler
    for name in ("s0-1", "s0-2"):
        engine.submit(name, "s0", [("s0", 0, 4000)], ("s0", 4000, 5), engine.now)
    scheduler.finish_requests("s0-1", RequestStatus.FINISHED_ABORTED)
    assert len(scheduler._retained) == 1
    closed.check_integrity()


def test_a_prefix_that_sessions_share_outlives_them(tmp_path: Path) -> None:
    closed = Closed(tmp_path, 420, {"policy": "mars"})
    engine, prefix = closed.engine, ("tool schemas", 0, 1600)

    def turn(name: str, num_own: int) -> int:
        engine.submit(f"{name}-0", name, [prefix, (name, 0, num_own)], (name, num_own, 2), now())
        hits = 0
        while engine.has_requests:
            at = now() + (engine.plan(now()) or 0.001)
            engine.complete(at)
        for event in closed.events:
            if event.kind == "turn_started" and event.session_id == name:  # type: ignore[attr-defined]
                hits = event.num_cached_tokens  # type: ignore[attr-defined]
        engine.control({"op": "session_end", "session_id": name})
        return hits

    def now() -> float:
        return engine.now

    assert turn("first", 100) == 0
    assert turn("second", 100) == 1600
    # Everybody who used it is gone, and five pools' worth of others come by.
    for index in range(12):
        engine.submit(f"n{index}-0", f"n{index}", [(f"n{index}", 0, 3000)], ("r", 0, 2), now())
        while engine.has_requests:
            engine.complete(now() + (engine.plan(now()) or 0.001))
    assert turn("third", 100) == 1600
    closed.check_integrity()
