# SPDX-License-Identifier: Apache-2.0
"""Keys, tenants and limits: what a request above them gets, and that nobody else notices."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mars.config import ConfigError, GatewayConfig, KeyConfig
from mars.gateway.keyring import Keyring, given_key
from mars.gateway.openai import ApiError
from mars.gateway.tenants import Tenants
from tests.gateway.conftest import Site, make_site

ADMIN = {"Authorization": "Bearer boss"}
A, B = ({"Authorization": f"Bearer {key}"} for key in ("key-a", "key-b"))


def key(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "key": f"key-{name}"} | limits


def keyring(*keys: KeyConfig, environ: dict[str, str] | None = None, **more: Any) -> Keyring:
    config = GatewayConfig(keys=keys, **more)
    return Keyring(config, Tenants(keys), lambda: 0.0, environ or {})


def scope(**headers: str) -> dict[str, Any]:
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"headers": named}


async def post(
    site: Site, headers: dict[str, str], session: str, path: str = "chat/completions"
) -> tuple[int, Any, Any]:
    url = f"{site.url}/v1/{path}"
    async with site.client.post(url, json={}, headers=headers | {"X-Session-ID": session}) as got:
        return got.status, got.headers, await got.json()


def test_a_key_is_found_however_it_is_given() -> None:
    digest = hashlib.sha256(b"hashed").hexdigest()
    ring = keyring(
        KeyConfig(name="plain", key="open"),
        KeyConfig(name="hash", key_sha256=digest.upper(), tenant="t"),
        KeyConfig(name="env", key_env="A_KEY"),
        environ={"A_KEY": "from-outside"},
        api_key="shared",
    )
    for token, tenant in (
        ("open", "plain"),
        ("hashed", "t"),
        ("from-outside", "env"),
        ("shared", "default"),
    ):
        assert ring.caller(scope(authorization=f"Bearer {token}")).tenant == tenant
        assert ring.caller(scope(authorization=f"bearer {token}")).tenant == tenant
        assert ring.caller(scope(x_api_key=token)).tenant == tenant
    for wrong in (digest, "", "Open", "key"):
        with pytest.raises(ApiError, match="Bearer"):
            ring.caller(scope(authorization=f"Bearer {wrong}"))


def test_the_bearer_key_comes_before_the_other_header() -> None:
    assert given_key(scope(x_api_key="one", authorization="Bearer two")) == b"two"
    assert given_key(scope()) == b""


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"variable A_KEY of key 'a' is not set"):
        keyring(KeyConfig(name="a", key_env="A_KEY"))


def test_one_token_is_not_two_keys() -> None:
    one, two = KeyConfig(name="a", key="x"), KeyConfig(name="b", key="x")
    with pytest.raises(ConfigError, match=r"'b' is the same token as 'a'"):
        keyring(one, two)
    with pytest.raises(ConfigError, match=r"gateway\.admin_key"):
        keyring(one, admin_key="x")


def test_the_rate_allows_a_burst_and_refills_evenly() -> None:
    now = 100.0
    keys = (KeyConfig(name="a", key="x", max_requests_per_minute=30),)
    tenants = Tenants(keys)
    ring = Keyring(GatewayConfig(keys=keys), tenants, lambda: now)
    caller = ring.caller(scope(authorization="Bearer x"))
    for _ in range(30):
        ring.count(caller)
    with pytest.raises(ApiError, match="30 requests per minute") as caught:
        ring.count(caller)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
    now += 2.0
    ring.count(caller)
    with pytest.raises(ApiError):
        ring.count(caller)
    now += 3600.0
    for _ in range(30):
        ring.count(caller)
    with pytest.raises(ApiError):
        ring.count(caller)
    assert tenants.refused["a", "max_requests_per_minute"] == 3


def test_nobody_is_asked_to_wait_longer_than_agents_bear() -> None:
    keys = (KeyConfig(name="a", key="x", max_requests_per_minute=1),)
    ring = Keyring(GatewayConfig(keys=keys), Tenants(keys), lambda: 0.0)
    caller = ring.caller(scope(authorization="Bearer x"))
    ring.count(caller)
    with pytest.raises(ApiError) as caught:
        ring.count(caller)
    assert caught.value.headers["Retry-After"] == "30"


def test_of_several_keys_of_a_tenant_the_tightest_limit_counts() -> None:
    keys = [
        KeyConfig(name="a", key="x", tenant="t", max_held_sessions=0),
        KeyConfig(name="b", key="y", tenant="t", max_held_sessions=3, max_turns=2),
    ]
    with pytest.raises(ApiError, match="0 sessions waiting"):
        Tenants(keys).check_hold("t", [])


@pytest.fixture
async def shared() -> AsyncIterator[Site]:
    """Two tenants before an engine of one session, a's limits tight."""
    keys = [
        key("a", max_active_sessions=1, max_held_sessions=1, max_turns=1),
        key("b", tenant="others"),
    ]
    async with make_site(keys=keys, admin_key="boss", admission="cap:2") as site:
        yield site


async def test_a_tenant_goes_into_events_and_state(shared: Site) -> None:
    assert (await post(shared, B, "s"))[0] == 200
    arrived = shared.events("session_arrived")[0]
    assert (arrived.tenant, arrived.weight) == ("others", 1.0)
    async with shared.client.get(f"{shared.url}/mars/v1/state", headers=ADMIN) as response:
        assert (await response.json())["active"][0]["tenant"] == "others"


async def test_another_tenants_session_cannot_be_joined_ended_or_reported_on(
    shared: Site,
) -> None:
    assert (await post(shared, B, "mine"))[0] == 200
    status, _, answer = await post(shared, A, "mine")
    assert (status, answer["error"]["type"]) == (403, "permission_error")
    end = f"{shared.url}/mars/v1/sessions/mine/end"
    tool = {"session_id": "mine", "tool_call_id": "c", "tool_name": "x", "time": 1.0}
    events = [{"kind": "tool_queued"} | tool]
    for headers, ended, posted in ((A, 404, 403), (B, 200, 200)):
        url = f"{shared.url}/mars/v1/events"
        async with shared.client.post(url, json=events, headers=headers) as response:
            assert response.status == posted
        async with shared.client.post(end, headers=headers) as response:
            assert response.status == ended


async def test_a_session_is_only_a_child_of_its_own_tenants_sessions(shared: Site) -> None:
    for headers, name in ((B, "parent"), (A, "other")):
        assert (await post(shared, headers, name))[0] == 200
    claims = {"X-Parent-Session-ID": "parent"}
    stranger = asyncio.create_task(post(shared, A | claims, "stranger"))
    await shared.event("session_held", session_id="stranger")
    assert (await post(shared, B | claims, "child"))[0] == 200  # though both places are taken
    stranger.cancel()
    await asyncio.gather(stranger, return_exceptions=True)


async def test_loads_are_not_for_clients_to_report(shared: Site) -> None:
    events = [{"kind": "events_dropped", "time": 1.0, "count": 1, "source": "x"}]
    for headers, status in ((B, 403), (ADMIN, 200)):
        url = f"{shared.url}/mars/v1/events"
        async with shared.client.post(url, json=events, headers=headers) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("path", "envelope"),
    [
        ("chat/completions", {"error"}),
        ("messages", {"type", "error"}),
    ],
)
async def test_limits_answer_429_in_the_envelope_of_the_api(
    shared: Site, path: str, envelope: set[str]
) -> None:
    shared.engine.pause()
    running = asyncio.create_task(post(shared, A, "runs", path))
    await shared.until(lambda e: len(e.seen) == 1)
    status, headers, answer = await post(shared, A, "runs", path)  # max_turns
    assert (status, set(answer)) == (429, envelope)
    assert answer["error"]["type"] == "rate_limit_error"
    assert "max_turns" in answer["error"]["message"]
    assert 0 < int(headers["Retry-After"]) <= 30
    waiting = asyncio.create_task(post(shared, A, "waits", path))  # max_active_sessions
    await shared.event("session_held", session_id="waits")
    status, _, answer = await post(shared, A, "too-many", path)
    assert status == 429
    assert "max_held_sessions" in answer["error"]["message"]
    other = asyncio.create_task(post(shared, B, "other", path))
    await shared.event("session_admitted", session_id="other")  # the engine has room for it
    shared.engine.resume()
    assert (await running)[0] == (await other)[0] == 200
    assert not waiting.done()
    shared.gateway.admission.end("runs", "explicit")
    assert (await waiting)[0] == 200
    async with shared.client.get(f"{shared.url}/metrics") as response:
        text = await response.text()
    labels = 'engine="0",limit="{}",model_name="fake-model",tenant="a"'
    for limit in ("max_turns", "max_held_sessions"):
        assert f"mars:tenant_refusals_total{{{labels.format(limit)}}} 1.0" in text
    assert 'mars:tenant_sessions_active{engine="0",model_name="fake-model",tenant="a"} 1.0' in text
    assert 'tenant="others"} 1.0' in text


async def test_a_tenant_with_nothing_in_the_engine_goes_before_one_that_has() -> None:
    async with make_site(keys=[key("a"), key("b")], admission="cap:2") as site:
        tasks: list[asyncio.Task[Any]] = []
        for headers, name in ((A, "one"), (A, "two"), (A, "a-early"), (B, "b-late")):
            is_held = len(tasks) >= 2
            tasks.append(asyncio.create_task(post(site, headers, name)))
            kind = "session_held" if is_held else "session_admitted"
            await site.event(kind, session_id=name)
        await asyncio.gather(*tasks[:2])
        for name, next_in in (("one", "b-late"), ("two", "a-early")):
            site.gateway.admission.end(name, "explicit")
            await site.event("session_admitted", session_id=next_in)
        await asyncio.gather(*tasks)
        admitted = [e.session_id for e in site.events("session_admitted")]
    assert admitted == ["one", "two", "b-late", "a-early"]


@pytest.mark.parametrize("path", ["/mars/v1/state", "/mars/v1/events?since=0"])
async def test_admin_endpoints_have_a_key_of_their_own(shared: Site, path: str) -> None:
    for headers, status in (({}, 401), (A, 403), (ADMIN, 200), ({"x-api-key": "boss"}, 200)):
        async with shared.client.get(shared.url + path, headers=headers) as response:
            assert response.status == status
    for action in ("reload", "drain"):
        url = f"{shared.url}/mars/v1/{action}"
        async with shared.client.post(url, headers=A) as response:
            assert response.status == 403
    assert (await post(shared, ADMIN, "s"))[0] == 401  # and it is no client's key


async def test_metrics_may_have_a_key(shared: Site) -> None:
    async with make_site(metrics_key="scrape", admin_key="boss") as site:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer scrape"}, 200),
            (ADMIN, 200),
        ):
            async with site.client.get(f"{site.url}/metrics", headers=headers) as response:
                assert response.status == status
    async with shared.client.get(f"{shared.url}/metrics") as response:
        assert response.status == 200
