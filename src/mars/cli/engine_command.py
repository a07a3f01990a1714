# SPDX-License-Identifier: Apache-2.0
"""The command line and environment of the engine that `mars serve` starts."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from mars.cli.errors import CliError
from mars.config import EngineConfig

SCHEDULER = "mars.engine.vllm.MarsScheduler"
_OFFLOADING = "--kv-offloading-size"
_SERVER = ("-m", "vllm.entrypoints.openai.api_server")
_OURS = ("--model", "--host", "--port", "--scheduler-cls", "--additional-config")


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What the user asked of the engine."""

    model: str | None
    """Name or directory; None with an emulated accelerator, whose profile names the model."""

    config: EngineConfig
    port: int
    flags: Sequence[str] = ()
    """vLLM's own, passed on as they are."""

    host_kv_gib: float | None = None
    """For vLLM's native offloading; None: none, or as ``flags`` say."""

    is_stock: bool = False
    """vLLM as it is, without the plug-in."""

    is_emulated: bool = False
    kv_tokens: int | None = None
    directory: Path
    """For what the emulated engine needs on disk."""


def engine_command(request: EngineRequest) -> tuple[list[str], dict[str, str]]:
    """Command and environment of vLLM's API server.

    Raises:
        CliError: vLLM is missing, or a flag is one that MARS sets itself.
    """
    if importlib.util.find_spec("vllm") is None:
        raise CliError(
            "vLLM is not installed in this environment",
            "pip install 'mars-serving[vllm]' with a GPU; `make install` without one",
        )
    _refuse_own(request.flags)
    request = replace(request, flags=[*request.flags, *_offloading(request)])
    arguments, environment = _emulated(request) if request.is_emulated else _real(request)
    return [sys.executable, *_SERVER, *arguments], environment


def _refuse_own(flags: Sequence[str]) -> None:
    for flag in flags:
        name = flag.partition("=")[0]
        if name in _OURS:
            raise CliError(
                f"{name} after `--` is set by MARS itself",
                "leave it out: MODEL comes before `--`; the gateway has --host and --port; "
                "--stock runs vLLM's own scheduler; engine settings are --set engine.NAME=VALUE",
            )


def _offloading(request: EngineRequest) -> list[str]:
    if request.host_kv_gib is None:
        return []
    names = {flag.partition("=")[0] for flag in request.flags}
    if given := names & {_OFFLOADING, "--kv-transfer-config"}:
        raise CliError(
            f"--host-kv-gib and {given.pop()} after `--` both say what host memory is for",
            "leave one of them out",
        )
    if request.host_kv_gib <= 0:
        raise CliError(
            f"--host-kv-gib {request.host_kv_gib:g} is no size",
            "give GiB above 0, or leave it out",
        )
    return [_OFFLOADING, f"{request.host_kv_gib:g}"]


def _real(request: EngineRequest) -> tuple[list[str], dict[str, str]]:
    if request.model is None:
        raise CliError("MODEL is missing", "mars serve MODEL, or mars serve --emulate PROFILE")
    arguments = ["--model", request.model, "--host", "127.0.0.1", "--port", str(request.port)]
    if not request.is_stock:
        settings = {"mars": _builtins(request.config)}
        arguments += ["--scheduler-cls", SCHEDULER, "--additional-config", json.dumps(settings)]
    return arguments + list(request.flags), dict(os.environ)


def _emulated(request: EngineRequest) -> tuple[list[str], dict[str, str]]:
    from mars.engine.emulated import prepare_model_dir, server_arguments, server_environment
    from mars.profiles import load_profile

    config = request.config
    assert config.profile is not None, "an emulated engine has a profile"
    profile = load_profile(config.profile)
    flags = list(request.flags)
    if request.model is not None:
        flags = ["--served-model-name", request.model, *flags]
    try:
        arguments = server_arguments(
            profile,
            prepare_model_dir(profile, request.directory / "model"),
            port=request.port,
            kv_tokens=request.kv_tokens,
            time_scale=config.time_scale,
            scheduler_cls=None if request.is_stock else SCHEDULER,
            engine_config=_builtins(config),
            extra=flags,
        )
    except ValueError as error:
        raise CliError(str(error), "see --kv-tokens and vLLM's --max-model-len") from error
    return arguments, server_environment(os.environ)


def _builtins(config: EngineConfig) -> dict[str, Any]:
    return msgspec.to_builtins(config)
