# SPDX-License-Identifier: Apache-2.0
"""How to start vLLM's API server on the emulated accelerator.

``python -m vllm.entrypoints.openai.api_server`` with :func:`server_arguments`, in the
environment of :func:`server_environment`. (The ``vllm`` command looks for a distribution of
that name, which the CPU build is not.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mars.profiles import Profile

BLOCK_SIZE = 16
PLATFORM_PLUGIN = "mars_emulated"


def server_arguments(
    profile: Profile,
    model_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    kv_tokens: int | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    time_scale: float = 1.0,
    scheduler_cls: str | None = None,
    engine_config: Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments of vLLM's API server.

    Args:
        profile: the GPU and model to emulate.
        model_dir: made by :func:`mars.engine.emulated.prepare_model_dir`.
        host: address to bind.
        port: port to bind.
        kv_tokens: KV pool; default: the profile's.
        max_model_len: longest context; default: the model's, or the pool if that is smaller.
        max_num_seqs: most sequences in a step; default: the profile's.
        time_scale: > 1 makes steps take longer than modelled, for a slow machine.
        scheduler_cls: dotted path of the scheduler; default: vLLM's own.
        engine_config: settings of the MARS plug-in (``EngineConfig`` as a mapping).
        extra: further arguments, which win over the ones made here.

    Raises:
        ValueError: the pool is smaller than the longest context, or than one block.
    """
    pool = _pool_tokens(profile, kv_tokens)
    longest = max_model_len or min(profile.architecture.max_positions, pool)
    if longest > pool:
        raise ValueError(
            f"max_model_len = {longest} needs more KV than there is ({pool} tokens): "
            "lower it, or raise kv_tokens"
        )
    ours = {**(engine_config or {}), "profile": profile.spec, "time_scale": time_scale}
    options: dict[str, str] = {
        "--model": str(model_dir),
        "--served-model-name": profile.model,
        "--host": host,
        "--port": str(port),
        "--load-format": "dummy",
        "--dtype": "bfloat16",
        "--distributed-executor-backend": "mars.engine.emulated.executor.EmulatedExecutor",
        "--additional-config": json.dumps({"mars": ours}),
        "--block-size": str(BLOCK_SIZE),
        # vLLM keeps one block for itself (the null block).
        "--num-gpu-blocks-override": str(pool // BLOCK_SIZE + 1),
        "--max-model-len": str(longest),
        "--max-num-batched-tokens": str(profile.max_num_batched_tokens),
        "--max-num-seqs": str(max_num_seqs or profile.max_num_seqs),
        "--tool-call-parser": "hermes",
    }
    if scheduler_cls is not None:
        options["--scheduler-cls"] = scheduler_cls
    flags = [
        "--enable-auto-tool-choice",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",  # cached_tokens in usage
        "--enforce-eager",
    ]
    return [part for option in options.items() for part in option] + flags + list(extra)


def server_environment(base: Mapping[str, str], *, threads: int = 1) -> dict[str, str]:
    """Environment of the server: ``base`` with what emulation needs.

    Args:
        base: usually ``os.environ``.
        threads: threads of numeric libraries; the server computes nothing.
    """
    environment = {
        **base,
        "MARS_EMULATE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # The CPU build would take this for the size of the KV pool.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    plugins = base.get("VLLM_PLUGINS")
    if plugins is not None and PLATFORM_PLUGIN not in plugins.split(","):
        environment["VLLM_PLUGINS"] = ",".join(filter(None, (plugins, PLATFORM_PLUGIN)))
    return environment


def _pool_tokens(profile: Profile, kv_tokens: int | None) -> int:
    """The KV pool in whole blocks."""
    pool = profile.kv_tokens if kv_tokens is None else kv_tokens
    if pool < BLOCK_SIZE:
        raise ValueError(f"kv_tokens = {pool}; must be at least one block ({BLOCK_SIZE} tokens)")
    return pool // BLOCK_SIZE * BLOCK_SIZE
