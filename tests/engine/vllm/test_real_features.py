# SPDX-License-Identifier: Apache-2.0
"""One real CPU engine with drafts, adapters and grammars: ours beside stock vLLM's scheduler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from mars.testing.models import cpu_environment

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

ROOT = Path(__file__).parents[3]
OURS = ["mars", "every_seam"]


@pytest.fixture(scope="module")
def came_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**cpu_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.vllm.real_features"]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("real"))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", ["plain", "adapters", "grammar", "stop", "stop_token"])
def test_greedy_tokens_are_those_of_stock(came_out: dict[str, Any], ours: str, kind: str) -> None:
    assert came_out[ours][kind]["tokens"] == came_out["stock"][kind]["tokens"]
    assert came_out[ours][kind]["reasons"] == came_out["stock"][kind]["reasons"]


@pytest.mark.parametrize("kind", ["plain", "adapters", "grammar"])
def test_memory_was_short(came_out: dict[str, Any], kind: str) -> None:
    assert came_out["every_seam"][kind]["preemptions"] > 0


@pytest.mark.parametrize("run", ["stock", *OURS])
def test_every_reply_under_a_grammar_is_json_of_its_schema(
    came_out: dict[str, Any], run: str
) -> None:
    assert set(came_out[run]["grammar"]["reasons"]) == {"stop"}
    for text in came_out[run]["grammar"]["texts"]:
        reply = json.loads(text)
        assert set(reply) == {"name", "done", "tags", "kind"}
        assert isinstance(reply["name"], str)
        assert len(reply["name"]) <= 6
        assert isinstance(reply["done"], bool)
        assert 2 <= len(reply["tags"]) <= 3
        assert set(reply["tags"]) <= {"a", "b"}
        assert reply["kind"] == "report"


@pytest.mark.parametrize("ours", OURS)
def test_an_adapter_changes_what_is_said(came_out: dict[str, Any], ours: str) -> None:
    kinds = came_out[ours]
    changed = zip(kinds["adapters"]["tokens"], kinds["plain"]["tokens"], strict=True)
    assert any(adapted != base for adapted, base in changed)


@pytest.mark.parametrize("ours", OURS)
def test_drafted_tokens_were_accepted(came_out: dict[str, Any], ours: str) -> None:
    assert 0 < came_out[ours]["drafts"]["accepted"] < came_out[ours]["drafts"]["drafted"]


@pytest.mark.parametrize("ours", OURS)
def test_stop_strings_and_tokens_end_the_reply(came_out: dict[str, Any], ours: str) -> None:
    stop, token = came_out[ours]["stop"], came_out[ours]["stop_token"]
    assert stop["reasons"] == token["reasons"] == ["stop"]
    assert len(token["tokens"][0]) <= 13
    assert stop["string"] not in stop["texts"][0]


@pytest.mark.parametrize("ours", OURS)
def test_several_replies(came_out: dict[str, Any], ours: str) -> None:
    assert came_out[ours]["several"]["replies"] == [3]
