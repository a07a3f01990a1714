# SPDX-License-Identifier: Apache-2.0
"""Health and readiness tell what is so; a drain lets active sessions go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mars.core.policy import BaseAdmission
from mars.testing.engine import FakeEngine
from tests.gateway.conftest import Site, make_site


async def ready(site: Site) -> tuple[int, Any]:
    async with site.client.get(f"{site.url}/ready") as response:
        return response.status, await response.json()


async def health(site: Site) -> int:
    async with site.client.get(f"{site.url}/health") as response:
        return response.status


async def test_ready_when_all_is_well(site: Site) -> None:
    assert await ready(site) == (200, {"ready": True, "reasons": []})
    async with site.client.get(f"{site.url}/ping") as response:
        assert response.status == 200


async def test_not_ready_while_the_engine_is_ill_or_away(free_port: int) -> None:
    async with make_site() as site:
        site.engine.is_healthy = False
        status, answer = await ready(site)
        assert (status, answer["ready"]) == (503, False)
        assert "answers /health with 503" in answer["reasons"][0]
        site.engine.is_healthy = True
        assert (await ready(site))[0] == 200
    async with make_site(engine_url=f"http://127.0.0.1:{free_port}") as site:
        status, answer = await ready(site)
        assert status == 503
        assert "cannot be reached" in answer["reasons"][0]


async def test_not_ready_while_telemetry_is_stale() -> None:
    lacking = FakeEngine(lacking=frozenset({"vllm:kv_cache_usage_perc"}))
    async with make_site(lacking, telemetry_stale_s=0.3) as site:
        site.engine.pause()
        running = site.start_chat("s")
        await site.until(lambda e: len(e.seen) == 1)
        while (await ready(site))[0] == 200:
            pass  # due as soon as a turn has run for telemetry_stale_s
        status, answer = await ready(site)
        assert status == 503
        assert "vllm:kv_cache_usage_perc" in answer["reasons"][0]
        assert await health(site) == 200  # which is about the engine
        site.engine.resume()
        assert (await running)[0] == 200


class Broken(BaseAdmission):
    """A policy with a defect."""

    def on_tick(self, *asked: Any) -> None:
        raise RuntimeError


async def test_not_ready_once_a_part_died() -> None:
    async with make_site(policy=Broken()) as site:
        assert (await site.chat("s"))[0] == 200
        if running := [t for t in asyncio.all_tasks() if t.get_name() == "admission control"]:
            await asyncio.wait(running)
        status, answer = await ready(site)
        assert status == 503
        assert answer["reasons"] == ["admission control died, see the log; restart the gateway"]


async def test_a_drain_sends_new_sessions_away_and_lets_active_ones_go_on() -> None:
    async with make_site(admission="cap:1") as site:
        assert (await site.chat("active"))[0] == 200
        held = site.start_chat("held")
        await site.event("session_held", session_id="held")
        url = f"{site.url}/mars/v1/drain"
        async with site.client.post(url) as response:
            assert await response.json() == {"is_draining": True, "num_active": 1}
        assert (await held)[0] == 503
        async with site.client.post(f"{site.url}/v1/completions", json={}) as response:
            assert response.status == 503
            assert 0 < int(response.headers["Retry-After"]) <= 30
        assert (await site.chat("active"))[0] == 200
        assert (await ready(site))[1]["reasons"] == ["the gateway drains: it takes no new sessions"]
        assert await health(site) == 200
        async with site.client.get(f"{site.url}/metrics") as response:
            assert 'mars:draining{engine="0",model_name="fake-model"} 1.0' in await response.text()
        async with site.client.delete(url) as response:
            assert (await response.json())["is_draining"] is False
        assert (await ready(site))[0] == 200
        site.gateway.admission.end("active", "explicit")
        assert (await site.chat("new"))[0] == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
async def test_probes_need_no_key(path: str) -> None:
    keys = {"api_key": "k", "admin_key": "boss", "metrics_key": "m"}
    async with make_site(**keys) as site, site.client.get(site.url + path) as response:
        assert response.status == 200
