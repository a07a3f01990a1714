# SPDX-License-Identifier: Apache-2.0
"""Settings that change under running sessions: all of a reload, or nothing."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mars.config import MarsConfig, load
from mars.config.keys import known_keys
from mars.gateway.reload import TUNABLE, change_between
from mars.telemetry import read_records
from mars.testing.engine import FakeEngine, serve
from tests.gateway.conftest import TIMEOUT_S, Site, make_site

RUN = """
import sys
from mars.config import load
from mars.gateway import run
run(load(sys.argv[1]), reread=lambda: load(sys.argv[1]))
"""


async def reload(site: Site) -> tuple[int, Any]:
    async with site.client.post(f"{site.url}/mars/v1/reload") as response:
        return response.status, await response.json()


async def is_up(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def write(path: Path, text: str, **gateway: Any) -> None:
    rows = "".join(f"{name} = {value!r}\n" for name, value in gateway.items())
    path.write_text(f"[gateway]\n{rows}{text}")


async def test_a_reload_takes_what_is_tunable_and_names_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mars.toml"
    first = {"admission": "cap:1", "hold_budget_s": 60.0}
    write(path, "", **first)
    async with make_site(**first, reread=lambda: load(path, environ={})) as site:
        await site.chat("a")
        held = site.start_chat("b")
        await site.event("session_held", session_id="b")
        keys = '[[gateway.keys]]\nname = "k"\nkey = "sesame"\n'
        changed = {"admission": "cap:2", "max_body_bytes": 100, "hold_budget_s": 60.0}
        write(path, f"{keys}[tools]\nslots = 3\n", port=1234, **changed)
        status, answer = await reload(site)
        tuned = ["gateway.admission", "gateway.keys", "gateway.max_body_bytes"]
        # The site's own engine address is not in the file.
        restart = ["gateway.engine_url", "gateway.port", "tools.slots"]
        assert (status, sorted(answer["changed"])) == (200, tuned)
        assert sorted(answer["needs_restart"]) == restart
        assert (await held)[0] == 200  # the new policy lets it in
        told = await site.event("settings_reloaded")
        assert sorted(told.changed) == tuned
        async with site.client.post(f"{site.url}/v1/completions", data=b"{}") as response:
            assert response.status == 401  # keys count from now on
        headers = {"Authorization": "Bearer sesame"}
        url = f"{site.url}/v1/completions"
        async with site.client.post(url, data=b" " * 101, headers=headers) as response:
            assert response.status == 413
        async with site.client.get(f"{site.url}/mars/v1/state", headers=headers) as response:
            text = await response.text()
        assert "sesame" not in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_body_bytes = 5\nadmission = 'nope'\n", "'nope'"),
        ("max_body_bytes = 5\nadmission = 'cap:0'\n", "at least 1"),
        ("max_body_bytes = 5\nkeepalive_s = 900.0\n", "keepalive_s"),
        ("max_body_bytes = 5\nkeys = [{name='a', key_env='NOT_SET_ANYWHERE'}]\n", "NOT_SET"),
        ("max_body_bytes = 5\nprt = 1\n", "did you mean"),
        ("max_body_bytes = \n", "not valid TOML"),
    ],
)
async def test_what_cannot_be_used_changes_nothing(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "mars.toml"
    async with make_site(reread=lambda: load(path, environ={})) as site:
        path.write_text(f"[gateway]\n{text}")
        status, answer = await reload(site)
        assert status == 400
        assert named in answer["error"]["message"]
        assert site.gateway.config.max_body_bytes == MarsConfig().gateway.max_body_bytes
        assert site.events("settings_reloaded") == []
        assert (await site.chat("s"))[0] == 200


async def test_without_a_source_there_is_nothing_to_reload(site: Site) -> None:
    status, answer = await reload(site)
    assert status == 400
    assert "not started from" in answer["error"]["message"]


def test_every_tunable_setting_is_one_and_shown_as_such() -> None:
    assert set(known_keys()) >= TUNABLE
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    listed = page.partition("Changed by a reload: ")[2].partition(".\n")[0]
    assert {f"gateway.{name}" for name in re.findall(r"`(\w+)`", listed)} == TUNABLE


def test_settings_that_are_equal_are_not_named() -> None:
    assert change_between(MarsConfig(), MarsConfig()).changed == ()


async def test_sighup_reloads_a_running_gateway(tmp_path: Path, free_port: int) -> None:
    path, log = tmp_path / "mars.toml", tmp_path / "events.jsonl"
    url = f"http://127.0.0.1:{free_port}"

    async def reloaded(count: int) -> list[Any]:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                events = [r.event for r in read_records(log)]
                if (found := [e for e in events if e.kind == "settings_reloaded"])[count - 1 :]:
                    return found
                await asyncio.sleep(0.02)

    async with serve(FakeEngine().app()) as engine_url, aiohttp.ClientSession() as client:
        telemetry = f"[telemetry]\nevents_path = '{log}'\n"
        fixed = {"port": free_port, "engine_url": engine_url}
        write(path, telemetry, max_body_bytes=10_000, **fixed)
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RUN, str(path), stdin=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not await is_up(client, url):
                    await asyncio.sleep(0.02)
            gateway.send_signal(signal.SIGHUP)
            assert (await reloaded(1))[0].changed == ()
            write(path, telemetry, max_body_bytes=10, **fixed)
            gateway.send_signal(signal.SIGHUP)
            assert (await reloaded(2))[1].changed == ("gateway.max_body_bytes",)
            async with client.post(f"{url}/v1/completions", data=b"{}".ljust(11)) as response:
                assert response.status == 413
        finally:
            gateway.terminate()
            assert await gateway.wait() == 0
