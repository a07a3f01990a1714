# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mars.config import GatewayConfig
from mars.core.model import Load
from mars.core.policy import admission_policies
from mars.gateway.admission import Admission
from mars.gateway.identity import Identity
from mars.gateway.openai import ApiError
from mars.gateway.places import PLACE_KEPT_S
from tests.gateway.conftest import TIMEOUT_S, Site, make_site


class Bench:
    """An admission queue with a clock that a test moves."""

    def __init__(self, policy: str = "cap:1", clock: Any = None, **options: Any) -> None:
        self.now = 100.0
        self.is_stale = False
        self.events: list[Any] = []
        settings = {k: options.pop(k) for k in list(options) if k != "max_held"}
        self.admission = Admission(
            admission_policies.create(policy),
            GatewayConfig(**settings),
            load=lambda now: Load(sampled_at=now),
            is_stale=lambda now: self.is_stale,
            emit=self.events.append,
            clock=clock or (lambda: self.now),
            **options,
        )

    def enter(
        self, session_id: str, budget_s: float | None = None, parent: str | None = None
    ) -> asyncio.Task[Any]:
        who = Identity(session_id, "test", parent)
        return asyncio.create_task(self.admission.enter(who, 100, budget_s=budget_s))

    def kinds(self, session_id: str) -> list[str]:
        return [e.kind for e in self.events if getattr(e, "session_id", None) == session_id]


async def spin() -> None:
    """Let tasks run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def absent(site: Site, session_id: str) -> None:
    """Return when nobody waits on the place of this session, which it still has."""
    async with asyncio.timeout(TIMEOUT_S):
        while not {h["session_id"]: h for h in (await site.state())["held"]}[session_id]["is_away"]:
            await asyncio.sleep(0.01)


async def test_sessions_beyond_the_window_are_held_and_let_in_in_order_of_arrival() -> None:
    async with make_site(admission="cap:1") as site:
        site.engine.pause()
        tasks = [site.start_chat("a")]
        await site.event("session_admitted", session_id="a")
        for name in "bc":
            tasks.append(site.start_chat(name))
            await site.event("session_held", session_id=name)
        state = await site.state()
        assert (state["num_active"], state["num_held"], state["window"]) == (1, 2, 1)
        assert [h["session_id"] for h in state["held"]] == ["b", "c"]
        assert [r.session_id for r in site.engine.seen] == ["a"]  # nothing held got through
        site.engine.resume()
        for task, name in zip(tasks, "abc", strict=True):
            assert (await task)[0] == 200
            async with site.client.post(f"{site.url}/mars/v1/sessions/{name}/end") as ended:
                assert ended.status == 200
        assert [r.session_id for r in site.engine.seen] == ["a", "b", "c"]
        assert [e.session_id for e in site.events("session_admitted")] == ["a", "b", "c"]


async def test_turns_of_an_active_session_are_never_held_again() -> None:
    bench = Bench("cap:1")
    first = await bench.enter("a")
    waiting = bench.enter("b")
    await spin()
    assert await bench.enter("a") is first
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_an_admitted_session_is_not_delayed_by_a_single_loop_turn() -> None:
    bench = Bench("none")
    entering = bench.admission.enter(Identity("a", "test"), 100)
    with pytest.raises(StopIteration):
        entering.send(None)  # runs to its end without waiting for anything
    assert bench.kinds("a") == ["session_arrived", "session_admitted"]


async def test_arrivals_in_a_burst_are_each_decided_at_once() -> None:
    bench = Bench("none", clock=time.monotonic)
    for i in range(200):
        with pytest.raises(StopIteration):
            bench.admission.enter(Identity(f"s{i}", "test"), 100).send(None)


async def test_a_client_that_leaves_while_held_is_passed_and_finds_its_place_again() -> None:
    async with make_site(admission="cap:1") as site:
        site.engine.pause()
        running = site.start_chat("a")
        await site.event("session_admitted", session_id="a")
        leaving = site.start_chat("b")
        await site.event("session_held", session_id="b")
        third = site.start_chat("c")
        await site.event("session_held", session_id="c")
        leaving.cancel()
        await absent(site, "b")
        back = site.start_chat("b")
        await site.waiting(2)
        site.engine.resume()
        await running
        for name, task in (("a", back), ("b", third)):
            site.gateway.admission.end(name, "explicit")
            assert (await task)[0] == 200
        assert [r.session_id for r in site.engine.seen] == ["a", "b", "c"]


async def test_a_place_that_nobody_comes_back_to_is_given_up() -> None:
    bench = Bench("cap:1")
    await bench.enter("a")
    leaving = bench.enter("b")
    await spin()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    bench.now += PLACE_KEPT_S + 1
    bench.admission.tick()
    assert bench.events[-1].reason == "disconnected"
    assert bench.admission.num_held == 0


async def test_a_child_of_an_active_session_is_let_in_at_once() -> None:
    bench = Bench("cap:1")
    await bench.enter("a")
    waiting = bench.enter("b")
    assert (await bench.enter("a/sub", parent="a")).parent == "a"
    assert not waiting.done()
    stranger = bench.enter("b/sub", parent="b")
    await spin()
    assert not stranger.done()
    for task in (waiting, stranger):
        task.cancel()
    await asyncio.gather(waiting, stranger, return_exceptions=True)


async def test_a_spent_hold_budget_is_a_503_and_the_retry_finds_its_place() -> None:
    async with make_site(admission="cap:1", hold_budget_s=0.05, keepalive_s=0.01) as site:
        site.engine.pause()
        running = site.start_chat("a")
        await site.event("session_admitted", session_id="a")
        url, headers = f"{site.url}/v1/messages", {"X-Session-ID": "b"}
        async with site.client.post(url, json={}, headers=headers) as response:
            assert response.status == 503
            assert 0 < int(response.headers["Retry-After"]) <= 30
            assert "keeps its place" in (await response.json())["error"]["message"]
        later = site.start_chat("c")
        await site.event("session_held", session_id="c")
        retry = site.start_chat("b")
        await site.waiting(2)
        assert [h["session_id"] for h in (await site.state())["held"]] == ["b", "c"]
        assert len([e for e in site.events("session_held") if e.session_id == "b"]) == 1
        site.engine.resume()
        await running
        site.gateway.admission.end("a", "explicit")
        assert (await retry)[0] == 200
        site.gateway.admission.end("b", "explicit")
        assert (await later)[0] == 200
        assert [r.session_id for r in site.engine.seen] == ["a", "b", "c"]


async def test_the_place_of_an_absent_session_is_skipped_and_kept_in_order() -> None:
    bench = Bench("cap:1")
    await bench.enter("a")
    with pytest.raises(ApiError):
        await bench.enter("b", budget_s=0.01)
    with pytest.raises(ApiError):
        await bench.enter("c", budget_s=0.01)
    returned = bench.enter("b")
    also = bench.enter("c", budget_s=0.01)
    await asyncio.sleep(0)
    assert [p.held.session.session_id for p in bench.admission.places()] == ["b", "c"]
    bench.admission.end("a", "explicit")
    assert (await returned).session_id == "b"
    with pytest.raises(ApiError):
        await also
    bench.admission.end("b", "explicit")  # nobody attends c's place: it is not let in
    assert bench.kinds("c") == ["session_arrived", "session_held"]
    bench.now += PLACE_KEPT_S + 1
    bench.admission.tick()
    assert bench.admission.num_held == 0
    assert bench.kinds("c")[-1] == "session_ended"


async def test_the_queue_is_bounded() -> None:
    bench = Bench("cap:1", max_held=2)
    await bench.enter("a")
    held = [bench.enter("b"), bench.enter("c")]
    await spin()
    with pytest.raises(ApiError, match="held already") as refused:
        await bench.enter("d")
    assert refused.value.status == 503
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    later = bench.enter("d")  # in place of the first that left
    await spin()
    bench.now += 0.1
    assert [p.session_id for p in bench.admission.places()] == ["c", "d"]
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)


async def test_ten_thousand_held_sessions_are_let_in_in_order() -> None:
    bench = Bench("cap:1", clock=time.monotonic)  # decisions must not eat the loop
    await bench.enter("first")
    tasks = [bench.enter(f"s{i}") for i in range(10_000)]
    await spin()
    assert bench.admission.num_held == 10_000
    bench.admission.policy = admission_policies.create("none")
    bench.admission.tick()
    sessions = await asyncio.gather(*tasks)
    assert [s.session_id for s in sessions] == [f"s{i}" for i in range(10_000)]


async def test_an_idle_session_ends_and_its_id_starts_a_new_generation() -> None:
    bench = Bench("none", idle_session_s=60.0)
    session = await bench.enter("a")
    bench.admission.begin_turn(session)
    bench.now += 100
    bench.admission.tick()
    assert "a" in bench.admission.active.sessions  # a turn is open
    bench.admission.end_turn(session)
    bench.now += 59
    bench.admission.tick()
    assert "a" in bench.admission.active.sessions
    bench.now += 2
    bench.admission.tick()
    assert bench.events[-1].reason == "idle"
    again = await bench.enter("a")
    assert (session.generation, again.generation) == (0, 1)


async def test_a_session_that_answered_ends_sooner_unless_it_goes_on() -> None:
    bench = Bench("none", idle_session_s=600.0, final_answer_s=60.0)
    for session_id in ("done", "goes-on"):
        session = await bench.enter(session_id)
        bench.admission.begin_turn(session)
        session.has_answered = True
        bench.admission.end_turn(session)
    bench.now += 30
    bench.admission.begin_turn(session)
    bench.admission.end_turn(session)
    bench.now += 31
    bench.admission.tick()
    assert (bench.events[-1].session_id, bench.events[-1].reason) == ("done", "final_answer")
    bench.now += 500
    bench.admission.tick()
    assert list(bench.admission.active.sessions) == ["goes-on"]


async def test_a_late_end_of_an_earlier_life_does_not_touch_the_present_one() -> None:
    bench = Bench("none")
    old = await bench.enter("a")
    bench.admission.begin_turn(old)
    bench.admission.end("a", "explicit")
    new = await bench.enter("a")
    bench.admission.begin_turn(new)
    bench.admission.end_turn(old, "explicit")
    assert bench.admission.active.sessions["a"] is new
    assert new.num_open_turns == 1


async def test_stale_telemetry_lets_nobody_in_beyond_those_active() -> None:
    bench = Bench("cap:2")
    await bench.enter("a")
    bench.is_stale = True
    bench.admission.tick()
    held = bench.enter("b")
    await spin()
    assert not held.done()
    assert bench.events[-1].kind == "session_held"
    bench.is_stale = False
    bench.admission.tick()
    assert (await held).session_id == "b"


async def test_draining_turns_the_held_away_and_takes_nobody_new() -> None:
    bench = Bench("cap:1")
    await bench.enter("a")
    held = bench.enter("b")
    await spin()
    bench.admission.drain()
    for refused in (held, bench.enter("c")):
        with pytest.raises(ApiError, match="shutting down") as error:
            await refused
        assert int(error.value.headers["Retry-After"]) <= 30
    assert (await bench.enter("a")).session_id == "a"
    assert bench.kinds("b")[-1] == "session_ended"


async def test_a_window_that_moves_is_an_event_with_its_reason() -> None:
    bench = Bench("aimd-paper")
    await bench.enter("a")
    for _ in range(3):
        bench.now += 1
        bench.admission.tick()
    changes = [e for e in bench.events if e.kind == "window_changed"]
    assert changes[0].num_active == 1
    assert changes[0].is_kv_pressed  # no telemetry is pressure
