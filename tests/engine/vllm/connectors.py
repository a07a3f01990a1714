# SPDX-License-Identifier: Apache-2.0
"""Where tests with a KV connector can run."""

from __future__ import annotations

import pytest

from mars.engine.vllm.compat import CONNECTORS_SINCE, release, vllm_version

NEEDS_CONNECTORS = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        (release(vllm_version()) or CONNECTORS_SINCE) < CONNECTORS_SINCE,
        reason="refused at start on this vLLM",
    ),
]
