# SPDX-License-Identifier: Apache-2.0
"""vLLM without an accelerator: real server, real scheduler, modelled time, scripted tokens.

The API server, the engine core, the scheduler and its paged KV accounting are vLLM's own.
Only the executor is replaced: a step takes the time its profile says, and its tokens come
from the request (``vllm_xargs``) instead of a model. Importing this package needs no vLLM.
"""

import os

from mars.engine.emulated.launch import server_arguments, server_environment
from mars.engine.emulated.model_dir import prepare_model_dir

__all__ = [
    "prepare_model_dir",
    "register_platform",
    "server_arguments",
    "server_environment",
]


def register_platform() -> str | None:
    """Entry point of ``vllm.platform_plugins``: ours, only where emulation is asked for."""
    if os.environ.get("MARS_EMULATE") == "1":
        return "mars.engine.emulated.platform.EmulatedPlatform"
    return None
