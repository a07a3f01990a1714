# SPDX-License-Identifier: Apache-2.0
"""The examples whose packages are here, on real vLLM (emulated) behind the real gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mars.bench.agents.clients import CLIENTS
from mars.bench.agents.tasks import POEM, task, workspace, write_scripts
from mars.core import events as ev
from mars.telemetry.sink import read_events
from mars.testing.server import ApiServer, free_port

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

PROFILE = "h100-80gb-qwen3-coder-30b-a3b"
NAMES = ("openai_chat", "openai_responses", "anthropic_messages")
"""Their packages come with vLLM; the other agents are `make agents`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[ApiServer]:
    """`mars serve` with the scripts of all examples, its tool server at a known place."""
    scripts = folder / "scripts.jsonl"
    write_scripts(scripts, folder, [CLIENTS[name] for name in NAMES])
    arguments = [
        *("serve", "--emulate", PROFILE, "--port", str(free_port()), "--time-scale", "0.2"),
        *("--events", str(folder / "events.jsonl"), "--engine-log", str(folder / "engine.log")),
        *("--set", f"engine.scripts={scripts}", "--set", f"tools.socket={folder}/tools.sock"),
    ]
    known = {k: v for k, v in os.environ.items() if not k.startswith("MARS_")}
    with ApiServer(
        arguments, environment=known, log_path=folder / "serve.log", module="mars"
    ) as server:
        yield server


def run_example(name: str, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    client = CLIENTS[name]
    work = workspace(folder, client, "main")
    work.mkdir(parents=True)
    return subprocess.run(
        [sys.executable, str(client.example), task(client, "main")],
        cwd=work,
        env=os.environ | {"MARS_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_agents_do_their_work_and_are_known_by_what_they_echo(
    served: ApiServer, folder: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda name: run_example(name, folder, served.url), NAMES))
    for name, ran in zip(NAMES, runs, strict=True):
        assert ran.returncode == 0, ran.stderr
        assert "All done: ÄÖ✓" in ran.stdout
        poem = workspace(folder, CLIENTS[name], "main") / "poem.txt"
        assert poem.read_text().rstrip("\n") == POEM.rstrip("\n")
    events = list(read_events(folder / "events.jsonl"))
    ended = [e for e in events if isinstance(e, ev.SessionEnded)]
    assert [e.num_turns for e in ended] == [4] * len(NAMES)
    tools = [e for e in events if isinstance(e, ev.ToolFinished)]
    assert len(tools) == 3 * len(NAMES)


def test_its_tool_server_gives_slots_and_reports_them(served: ApiServer, folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "exec", "--session", "s9", "--", "echo", "ran"],
        env=os.environ | {"MARS_TOOLS": str(folder / "tools.sock")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ran\n", "")
    lines = (folder / "events.jsonl").read_text().splitlines()
    kinds = [e["kind"] for e in map(json.loads, lines[1:]) if e.get("session_id") == "s9"]
    assert kinds == ["tool_queued", "tool_started", "tool_finished"]
