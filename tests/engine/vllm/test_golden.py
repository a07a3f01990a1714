# SPDX-License-Identifier: Apache-2.0
"""A fixed run comes out as it did on every supported vLLM; ``scripts/golden_run.py --write``."""

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("vllm")

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[3]


def test_the_fixed_run_comes_out_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    golden_run = importlib.import_module("golden_run")
    expected = json.loads((ROOT / "tests/engine/vllm/golden.json").read_text())
    assert golden_run.run_all() == expected
