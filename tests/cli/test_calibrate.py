# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.cli.conftest import Run


def test_no_server_and_too_little_to_measure_are_told(mars: Run):
    nobody = mars("calibrate", "http://127.0.0.1:9", "--machine", "h100-qwen3-coder-30b")
    assert nobody.returncode == 1
    assert "no server offers models at http://127.0.0.1:9/v1/models" in nobody.stderr
    little = mars(
        "calibrate", "http://127.0.0.1:9", "--machine", "h100-qwen3-coder-30b", "--max-batch", "1"
    )
    assert "--max-batch is 1" in little.stderr
