# SPDX-License-Identifier: Apache-2.0
"""`mars serve` on the emulated accelerator: real vLLM, real gateway, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil
import pytest

from mars.cli.engine_process import EngineProcess
from mars.cli.errors import CliError
from mars.cli.serve import serve_until_stopped
from mars.config import GatewayConfig, MarsConfig
from mars.core.events import EngineJoined
from mars.gateway import listen
from mars.telemetry.sink import read_events
from tests.cli.conftest import Background, Run, is_gone, wait_until

pytestmark = pytest.mark.vllm

PROFILE = "h100-qwen3-coder-30b"
BOOT_S = 180.0
ARGUMENTS = ("serve", "--emulate", PROFILE, "--policy", "fcfs", "--admission", "none")


def _complete(port: int, session_id: str) -> httpx2.Response:
    url = f"http://127.0.0.1:{port}/v1"
    model = httpx2.get(f"{url}/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": list(range(20, 84)), "max_tokens": 4}
    return httpx2.post(f"{url}/completions", json=body, headers={"X-Session-ID": session_id})


@pytest.mark.e2e
def test_it_serves_logs_and_ends_with_everything_it_started(
    background: Callable[..., Background], tmp_path: Path, free_port: int
):
    events = tmp_path / "events.jsonl"
    log = tmp_path / "engine.log"
    usable = frozenset(os.sched_getaffinity(0))
    for_tools = max(usable)
    beside_tools = usable - {for_tools} or usable  # of a single core nothing is left
    served = background(
        *ARGUMENTS,
        "--port",
        str(free_port),
        "--kv-tokens",
        "32000",
        "--events",
        str(events),
        "--engine-log",
        str(log),
        "--set",
        f"tools.cpu_list={for_tools}",
        "--",
        "--max-num-seqs",
        "4",
    )
    line = served.says("MARS serves", BOOT_S)
    assert line == (f"MARS serves http://127.0.0.1:{free_port}/v1 (policy fcfs, admission none)\n")
    reply = _complete(free_port, "s1")
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 4
    started = served.children()
    assert len(started) >= 2  # API server and engine core
    assert {frozenset(process.cpu_affinity() or ()) for process in started} == {beside_tools}
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    assert all(is_gone(process) for process in started)
    kinds = {
        event.kind for event in read_events(events) if getattr(event, "session_id", "s1") == "s1"
    }
    assert {"session_arrived", "turn_finished", "engine_sampled"} <= kinds


@pytest.mark.e2e
@pytest.mark.skipif("MARS_SLOW_TESTS" not in os.environ, reason="two engines; MARS_SLOW_TESTS=1")
def test_two_data_parallel_ranks_are_both_followed(
    background: Callable[..., Background], tmp_path: Path, free_port: int
):
    events = tmp_path / "events.jsonl"
    served = background(
        *ARGUMENTS,
        "--port",
        str(free_port),
        "--kv-tokens",
        "32000",
        "--events",
        str(events),
        "--",
        "--data-parallel-size",
        "2",
    )
    served.says("MARS serves", 2 * BOOT_S)
    for index in range(8):
        assert _complete(free_port, f"s{index}").status_code == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    seen = list(read_events(events))
    ranks = {event.engine_rank for event in seen if isinstance(event, EngineJoined)}
    assert ranks == {0, 1}
    assert sum(event.kind == "turn_finished" for event in seen) == 8


def test_a_dying_engine_is_reported_and_nothing_is_left(tmp_path: Path, free_port: int):
    url = f"http://127.0.0.1:{free_port}"
    command = [sys.executable, "-m", "mars.testing.engine", "--port", str(free_port)]
    engine = EngineProcess(command, dict(os.environ), url, tmp_path / "engine.log")
    config = MarsConfig(gateway=GatewayConfig(engine_url=url, port=0, admission="none"))
    before = set(psutil.Process().children())

    async def serve_until_the_engine_dies() -> None:
        listener = listen(config.gateway)
        port = listener.getsockname()[1]
        serving = asyncio.create_task(
            serve_until_stopped(engine, config, listener, BOOT_S, lambda: config)
        )
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=BOOT_S
        ) as client:
            assert (await client.get("/v1/models")).status_code == 200
        (child,) = set(psutil.Process().children()) - before
        child.kill()
        await serving

    with pytest.raises(CliError, match="the engine ended with signal SIGKILL"):
        asyncio.run(serve_until_the_engine_dies())
    assert set(psutil.Process().children()) <= before


def test_ctrl_c_while_the_engine_loads_ends_it(
    background: Callable[..., Background], free_port: int
):
    served = background(*ARGUMENTS, "--port", str(free_port))
    wait_until(lambda: "starting the engine" in served.err.read_text())
    wait_until(lambda: bool(served.children()))
    started = served.children()
    assert started
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    assert all(is_gone(process) for process in started)


def test_a_taken_port_is_refused_before_the_engine_starts(mars: Run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = mars(*ARGUMENTS, "--port", str(port))
    assert ran.returncode == 1
    assert f"gateway.port: port {port} on 127.0.0.1 is in use" in ran.stderr
    assert "fix: " in ran.stderr
    assert "starting the engine" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--emulate", PROFILE, "--policy", "nope"), "engine.policy: unknown scheduling policy"),
        (("--emulate", PROFILE, "--admission", "nope"), "gateway.admission: unknown admission"),
        (("--emulate", "abacus"), "engine.profile: unknown profile 'abacus'"),
        (("model", "--kv-tokens", "64"), "--kv-tokens and --time-scale are for an emulated"),
        (("--port", "0"), "MODEL is missing"),
        (("model", "--port", "0", "--", "--host", "0.0.0.0"), "--host after `--`"),
        (
            ("--set", "telemetry.engine_ranks=3", "model", "--", "-dp", "2"),
            "telemetry.engine_ranks is 3, but vLLM is to start 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    mars: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
):
    ran = mars("serve", *arguments, TMPDIR=str(tmp_path))
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"mars: error: {expected}")
    assert not list(tmp_path.glob("mars-*"))
