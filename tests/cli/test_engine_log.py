# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.cli.engine_log import reason


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["api_server.py: error: unrecognized arguments: --x"], "unrecognized arguments: --x"),
        (["Traceback (most recent call last):", "ValueError: no"], "ValueError: no"),
        (
            [
                "(EngineCore pid=7) ERROR 11-21 03:06:27 [core.py:195] ValueError: too small",
                "(APIServer pid=6) RuntimeError: Engine core initialization failed. See above.",
            ],
            "ValueError: too small",
        ),
        (
            ["RuntimeError: Engine core initialization failed. See root cause above."],
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ),
        (
            ["mars.engine.vllm.compat.UnsupportedEngineError: vLLM 0.29 is older"],
            "mars.engine.vllm.compat.UnsupportedEngineError: vLLM 0.29 is older",
        ),
        (["WARNING found ulimit, may cause `OSError: [Errno 24] Too many open files`"], None),
        (["INFO: started", ""], None),
        ([], None),
    ],
)
def test_the_cause_is_found(lines: list[str], expected: str | None):
    assert reason(lines) == expected
