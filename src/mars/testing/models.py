# SPDX-License-Identifier: Apache-2.0
"""A model small enough to run on any CPU, with random weights (``--load-format dummy``)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from mars.engine.emulated import prepare_model_dir
from mars.profiles import load_profile


def tiny_model_dir(directory: Path) -> Path:
    """Write configuration and tokenizer of a two-layer model; returns ``directory``."""
    profile = load_profile("h100-llama-3.1-8b")
    shape = dataclasses.replace(
        profile.architecture,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_size=32,
        hidden_size=64,
        max_positions=8192,
    )
    return prepare_model_dir(dataclasses.replace(profile, architecture=shape), directory)


def cpu_arguments(model: Path, port: int, *, num_blocks: int, max_model_len: int) -> list[str]:
    """Command line of vLLM's API server for the tiny model on its CPU build."""
    return [
        *("--model", str(model), "--served-model-name", "tiny", "--load-format", "dummy"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
        *("--block-size", "32", "--num-gpu-blocks-override", str(num_blocks)),
        *("--max-model-len", str(max_model_len), "--max-num-batched-tokens", "2048"),
        *("--enable-prompt-tokens-details", "--seed", "0"),
    ]


def cpu_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for it: offline, one thread, little memory."""
    return {
        **(os.environ if base is None else base),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
