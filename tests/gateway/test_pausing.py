# SPDX-License-Identifier: Apache-2.0
"""The explicit pause at the gateway: between turns, told to the engine, its place kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mars.core.model import ActiveSet, Load
from mars.core.policy import BaseAdmission
from tests.gateway.conftest import TIMEOUT_S, Site, make_site


class Pausing(BaseAdmission):
    """Pauses whom a test names, and admits whom it does not."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pause(self, active: ActiveSet, load: Load, now: float) -> list[str]:
        return self.names

    def admit(self, held: Any, active: ActiveSet, load: Load, now: float) -> list[str]:
        return [h.session.session_id for h in held if h.session.session_id not in self.names]


POLICY = Pausing()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    POLICY.names = []
    # The test's own ticks decide; telemetry is fresh because the fake engine is scraped.
    async with make_site(policy=POLICY, control_interval_s=20.0, telemetry_stale_s=60.0) as made:
        await made.chat("a")
        await made.chat("b")
        yield made


async def test_a_paused_session_waits_with_its_next_turn_and_goes_on_when_let(site: Site) -> None:
    POLICY.names = ["a"]
    site.gateway.admission.tick()
    await site.event("session_paused", session_id="a")
    assert list(site.gateway.admission.active.sessions) == ["b"]
    waiting = site.start_chat("a")
    await site.event("session_held", session_id="a")
    assert (await site.chat("b"))[0] == 200
    POLICY.names = []
    site.gateway.admission.tick()
    assert (await waiting)[0] == 200
    (resumed,) = site.events("session_resumed")
    assert resumed.waited_s > 0
    assert resumed.paused_s >= resumed.waited_s
    assert len([e for e in site.events("session_admitted") if e.session_id == "a"]) == 1
    assert site.gateway.admission.active.sessions["a"].num_turns == 2


async def test_a_session_inside_a_turn_is_paused_at_its_end(site: Site) -> None:
    site.engine.pause()
    running = site.start_chat("a")
    await site.until(lambda engine: len(engine.seen) == 3)
    POLICY.names = ["a"]
    site.gateway.admission.tick()
    assert not site.events("session_paused")
    site.engine.resume()
    assert (await running)[0] == 200
    await site.event("session_paused", session_id="a")


async def test_pauses_end_by_themselves_though_the_policy_never_relents(site: Site) -> None:
    POLICY.names = ["a"]
    site.gateway.admission.tick()
    waiting = site.start_chat("a")
    await site.event("session_held", session_id="a")
    site.gateway.admission.pauses.limit_s = 0.0
    site.gateway.admission.tick()
    assert (await waiting)[0] == 200
    site.gateway.admission.tick()
    assert len(site.events("session_paused")) == 1  # never again


async def test_a_paused_session_can_be_ended_and_its_client_gone_for_good(site: Site) -> None:
    POLICY.names = ["a"]
    site.gateway.admission.tick()
    waiting = site.start_chat("a")
    await site.event("session_held", session_id="a")
    assert site.gateway.admission.end("a", "explicit")
    async with asyncio.timeout(TIMEOUT_S):
        status, body = await waiting
    # Its stream had no byte yet, or an early head: the error is told either way.
    assert status == 409 or b"was ended" in body
    assert site.gateway.admission.num_held == 0
