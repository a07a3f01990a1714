# SPDX-License-Identifier: Apache-2.0
"""The system under test as a child process: what is said when it does not come up."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mars.bench.runner import Experiment, serve_arguments
from mars.bench.scenario import Contestant, Machine, Scenario, Workload
from mars.bench.server import Server, ServerError
from mars.profiles import load_profile

PROFILE = "h100-80gb-qwen3-coder-30b-a3b"


async def _start(arguments: list[str], url: str, log: Path) -> None:
    async with Server(arguments, url, log).running(timeout_s=60):
        pytest.fail("it must not come up")


async def test_a_server_that_ends_is_reported_with_the_end_of_its_log(
    tmp_path: Path, free_port: int
) -> None:
    log = tmp_path / "new" / "serve.log"
    with pytest.raises(ServerError, match="unknown profile 'no-such-gpu'") as caught:
        await _start(["--emulate", "no-such-gpu"], f"http://127.0.0.1:{free_port}", log)
    assert "ended with status 1" in str(caught.value)
    assert str(log) in str(caught.value)


@pytest.mark.vllm
async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--emulate", PROFILE, "--port", str(port)]
        with pytest.raises(ServerError, match=f"{port}.*in use|in use.*{port}"):
            await _start(arguments, f"http://127.0.0.1:{port}", tmp_path / "serve.log")


def test_the_contestant_and_the_machine_are_on_the_command_line(tmp_path: Path) -> None:
    contestant = Contestant(label="x", policy="mars-paper", admission="cap:8")
    machine = Machine(profile=PROFILE, tool_slots=3, tool_cpu_list="0-1", time_scale=2.0)
    scenario = Scenario(
        title="t",
        workload=Workload(trace="-"),
        machine=machine,
        policies=(contestant,),
        vllm_flags=("--stream-interval", "4"),
    )
    experiment = Experiment(scenario, (), load_profile(PROFILE), 99_200)
    text = " ".join(serve_arguments(experiment, contestant, tmp_path, 18_499))
    for part in (
        f"--emulate {PROFILE}",
        "--kv-tokens 99200",
        "--policy mars-paper",
        "--admission cap:8",
        "--time-scale 2",
        "--port 18499",
        "--set tools.slots=3",
        "--set tools.cpu_list=0-1",
        f"--events {tmp_path}/events.jsonl",
    ):
        assert part in text
    assert text.endswith("-- --stream-interval 4")
