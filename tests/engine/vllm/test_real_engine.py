# SPDX-License-Identifier: Apache-2.0
"""The plug-in in vLLM's real CPU engine: the same tokens as stock, and KV that is kept."""

import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("vllm")

from mars.testing.models import cpu_arguments, cpu_environment, tiny_model_dir
from mars.testing.server import ApiServer, free_port
from mars.traces.content import filler

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

NUM_BLOCKS = 150
BLOCK = 32

# Recomputing on this CPU is what makes keeping worth while: priced per token, measured
# at 1-3 ms on the machines that run this test.
PROFILE = """
gpu = "h100-80gb"
model = "llama-3.1-8b"
cost = { per_token_s = 2e-3 }
"""


class Engine:
    """A running server, asked one completion at a time or many at once."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def complete(self, prompt: list[int], session: str, max_tokens: int = 16) -> dict[str, Any]:
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        reply = self._client.post("/v1/completions", json=body, headers={"X-Session-ID": session})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def tokens(self, reply: dict[str, Any]) -> list[int]:
        return reply["choices"][0]["token_ids"]

    def cached(self, reply: dict[str, Any]) -> int:
        return (reply["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0


def run_all(engine: Engine, turns: list[tuple[list[int], str]], max_tokens: int) -> list[list[int]]:
    with concurrent.futures.ThreadPoolExecutor(len(turns)) as pool:
        replies = pool.map(lambda turn: engine.complete(*turn, max_tokens=max_tokens), turns)
        return [engine.tokens(reply) for reply in replies]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("tiny"))


def serve(model: Path, tmp_path: Path, name: str, mars: dict[str, Any] | None) -> Iterator[Engine]:
    arguments = cpu_arguments(model, free_port(), num_blocks=NUM_BLOCKS, max_model_len=4096)
    if mars is not None:
        arguments += ["--scheduler-cls", "mars.engine.vllm.MarsScheduler"]
        arguments += ["--additional-config", json.dumps({"mars": mars})]
    log_path = tmp_path / f"{name}.log"
    with (
        ApiServer(arguments, environment=cpu_environment(), log_path=log_path) as server,
        httpx2.Client(base_url=server.url, timeout=120) as client,
    ):
        yield Engine(client)


@pytest.fixture(scope="module")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from serve(model, tmp_path_factory.mktemp("stock"), "stock", None)


@pytest.fixture(scope="module")
def mars(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("mars")
    profile = directory / "cpu.toml"
    profile.write_text(PROFILE)
    settings = {"policy": "mars-paper", "profile": str(profile)}
    yield from serve(model, directory, "mars", settings)


def second_turn_after_noise(engine: Engine) -> int:
    first = filler("a", 0, 1541)
    reply = engine.complete(first, "a")
    for i in range(6):
        engine.complete(filler(f"noise-{i}", 0, 1841), f"noise-{i}")
    prompt = first + engine.tokens(reply) + filler("a", 1541, 229)
    return engine.cached(engine.complete(prompt, "a"))


def test_a_second_turn_finds_its_kv_where_stock_vllm_has_lost_it(
    stock: Engine, mars: Engine
) -> None:
    assert second_turn_after_noise(stock) == 0
    assert second_turn_after_noise(mars) >= 1541 // BLOCK * BLOCK


def test_greedy_tokens_are_those_of_stock_vllm_under_memory_pressure(
    stock: Engine, mars: Engine
) -> None:
    turns = [(filler(f"greedy-{i}", 0, 700 + 130 * i), f"greedy-{i}") for i in range(10)]
    expected = run_all(stock, turns, max_tokens=48)
    assert run_all(mars, turns, max_tokens=48) == expected


def test_no_token_differs_when_turns_are_preempted_shrunk_released_and_evicted(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    script = Path(__file__).parents[3] / "benchmarks" / "same_tokens.py"
    command = [sys.executable, str(script), "--sessions", "4", "--json", str(report)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    outcome = json.loads(report.read_text())
    assert outcome.keys() == {"fcfs", "infercept", "mars-paper", "mars"}
    assert all(one["differing"] == [] for one in outcome.values())
    # The script has checked that each did what its decisions lead to; all of it, at least once:
    happened = {kind for one in outcome.values() for kind, n in one["counts"].items() if n}
    assert happened >= {"turn_preempted", "chunk_shrunk", "kv_evicted", "kv_released pressure"}
