# SPDX-License-Identifier: Apache-2.0
"""What a turn does to its session, and what the engine is told with it."""

from __future__ import annotations

from typing import Any

import pytest

from mars.core import events as ev
from tests.gateway.conftest import Site, make_site


def finished(request_id: str, num_tokens: int) -> ev.TurnFinished:
    return ev.TurnFinished(
        time=1.0,
        session_id="s",
        request_id=request_id,
        turn_index=0,
        num_prompt_tokens=num_tokens,
        num_output_tokens=0,
        num_cached_tokens=0,
        num_recomputed_tokens=0,
        num_preemptions=0,
        freed_blocks=0,
        retained_blocks=0,
        finish_reason="stop",
    )


def submitted(request_id: str) -> ev.TurnSubmitted:
    return ev.TurnSubmitted(
        time=1.0,
        session_id="s",
        request_id=request_id,
        turn_index=0,
        num_prompt_tokens=10,
        projected_kv_blocks=1,
    )


async def test_a_late_completion_of_an_earlier_life_says_nothing_of_the_new_one(
    site: Site,
) -> None:
    await site.chat("s")
    site.gateway.hub.emit(submitted("old"), "engine")
    site.gateway.admission.end("s", "explicit")
    await site.chat("s")
    session = site.gateway.admission.active.sessions["s"]
    assert session.generation == 1
    before = session.context_tokens
    site.gateway.hub.emit(finished("old", 90_000), "engine")
    assert site.gateway.admission.active.sessions["s"] is session
    assert session.context_tokens == before
    site.gateway.hub.emit(submitted("new"), "engine")
    site.gateway.hub.emit(finished("new", 500), "engine")
    assert session.context_tokens == 500


async def priorities(site: Site, **fields: Any) -> list[str | None]:
    for session_id in ("a", "b", "a"):
        await site.chat(session_id, **fields)
    return [request.headers.get("x-vllm-priority") for request in site.engine.seen]


async def test_priorities_are_stamped_on_request_the_oldest_session_first() -> None:
    async with make_site(stamp_priority=True) as site:
        site.gateway.turns._started_at -= 100.0  # so that two sessions differ at all
        first = site.gateway.clock
        site.gateway.admission._clock = lambda: first() + 5.0 * len(site.engine.seen)
        a, b, again = [int(p or "") for p in await priorities(site)]
        assert a == again < b


async def test_a_clients_own_priority_stands_and_none_is_stamped_by_default(site: Site) -> None:
    assert await priorities(site) == [None] * 3
    async with make_site(stamp_priority=True) as stamping:
        assert await priorities(stamping, priority=7) == [None] * 3
        url = f"{stamping.url}/v1/chat/completions"
        async with stamping.client.post(url, json={}, headers={"X-Vllm-Priority": "3"}) as response:
            await response.read()
        assert stamping.engine.seen[-1].headers["x-vllm-priority"] == "3"


async def test_a_client_without_an_id_finds_the_place_it_left(site: Site) -> None:
    async with make_site(admission="cap:1", hold_budget_s=0.05, keepalive_s=0.01) as full:
        await full.chat("a")

        async def ask(text: str) -> tuple[int, dict[str, Any]]:
            body = {"messages": [{"role": "user", "content": text}]}
            async with full.client.post(f"{full.url}/v1/messages", json=body) as response:
                return response.status, await response.json()

        assert (await ask("mine"))[0] == 503
        (place,) = (await full.state())["held"]
        assert (await ask("mine"))[0] == 503
        assert (await ask("another's"))[0] == 503
        first, second = (await full.state())["held"]
        assert first["session_id"] == place["session_id"] != second["session_id"]


async def test_the_engine_is_told_when_a_tool_is_expected_back(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    told: list[dict[str, Any]] = []
    hub = site.gateway.hub
    monkeypatch.setattr(hub, "send", lambda op, **fields: told.append({"op": op} | fields))
    for i in range(40):
        for event in (
            ev.ToolStarted(
                time=1.0, session_id="s", tool_call_id=f"t{i}", tool_name="test", queued_s=0.0
            ),
            ev.ToolFinished(
                time=31.0,
                session_id="s",
                tool_call_id=f"t{i}",
                tool_name="test",
                duration_s=30.0,
                cpu_seconds=0.0,
                peak_bytes=0,
                exit_code=0,
            ),
        ):
            hub._command(event)
    started = [m for m in told if m["op"] == "tool_started"]
    assert 20.0 < started[-1]["expected_return_at"] - 1.0 < 45.0
