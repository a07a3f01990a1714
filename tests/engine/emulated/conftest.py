# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Iterator

import pytest

from mars.engine.emulated import prepare_model_dir, server_arguments, server_environment
from mars.profiles import Profile, load_profile
from mars.testing.server import ApiServer, free_port

KV_TOKENS = 40_000
MAX_MODEL_LEN = 16_384


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile("h100-qwen3-coder-30b")


@pytest.fixture(scope="module")
def server(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """vLLM's API server on the emulated accelerator, with a pool of 40,000 tokens."""
    directory = tmp_path_factory.mktemp("emulated")
    arguments = server_arguments(
        profile,
        prepare_model_dir(profile, directory / "model"),
        port=free_port(),
        kv_tokens=KV_TOKENS,
        max_model_len=MAX_MODEL_LEN,
    )
    environment = server_environment(os.environ) | {"VLLM_SERVER_DEV_MODE": "1"}
    log_path = directory / "server.log"
    with ApiServer(arguments, environment=environment, log_path=log_path) as running:
        yield running
