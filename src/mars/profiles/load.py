# SPDX-License-Identifier: Apache-2.0
"""Find and combine profile files."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mars.core.copies import HostLink
from mars.core.cost import Accelerator, Architecture, CostModel, roofline

MEMORY_UTILISATION = 0.92
"""Share of GPU memory the engine uses: vLLM's default ``--gpu-memory-utilization``."""

ACTIVATION_BYTES = 4 * 2**30
"""Activations, CUDA graphs and workspace of an 8,192-token step: assumed."""

MIN_KV_TOKENS = 8192
"""A pool smaller than one step's prefill serves nobody: such a model does not fit."""

_DIRECTORY = Path(__file__).parent
_T = TypeVar("_T")


class ProfileError(ValueError):
    """No such profile, a malformed file, or a model that does not fit its GPU."""


class GpuFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file under ``gpus/``."""

    accelerator: Accelerator
    host_link: HostLink
    sources: dict[str, str]
    aliases: list[str] = []
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file under ``models/``."""

    architecture: Architecture
    sources: dict[str, str]
    aliases: list[str] = []


class ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A profile of one's own: a known GPU and model, with what was measured in their place.

    ``cost`` overrides single fields of :class:`mars.core.cost.CostModel`.
    """

    gpu: str
    model: str
    memory_utilisation: float = MEMORY_UTILISATION
    activation_bytes: int = ACTIVATION_BYTES
    kv_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    cost: dict[str, float] = {}
    sources: dict[str, str] = {}


@dataclasses.dataclass(slots=True, frozen=True)
class Profile:
    """One model on one GPU: step cost and KV pool.

    ``kv_tokens`` is what the memory holds beside weights and activations. ``sources`` maps
    ``gpu.<field>``, ``model.<field>`` and own fields to where the number comes from.
    ``spec`` loads the same profile again, in another process too.
    """

    name: str
    spec: str
    gpu: str
    model: str
    accelerator: Accelerator
    architecture: Architecture
    kv_bytes_per_token: int
    kv_tokens: int
    max_num_batched_tokens: int
    max_num_seqs: int
    cost: CostModel
    host_link: HostLink
    sources: Mapping[str, str]


def gpu_names() -> list[str]:
    """Names of the GPUs there are files for."""
    return _names("gpus")


def model_names() -> list[str]:
    """Names of the models there are files for."""
    return _names("models")


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by name (``<gpu>-<model>``, aliases allowed) or from a TOML file.

    Raises:
        ProfileError: unknown name (the message lists the known ones), malformed file, or
            weights that leave no room for KV.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(text)
        return _build(_read(path, ProfileFile), path.stem, str(path.resolve()))
    gpu, model = _split(text)
    name = f"{gpu}-{model}"
    return _build(ProfileFile(gpu=gpu, model=model), name, name)


def _build(file: ProfileFile, name: str, spec: str) -> Profile:
    gpu_name, gpu = _find("gpus", file.gpu, GpuFile)
    model_name, model = _find("models", file.model, ModelFile)
    cost = roofline(gpu.accelerator, model.architecture)
    try:
        cost = dataclasses.replace(cost, **file.cost)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"profile {name!r}, table [cost]: {error}") from error
    sources = {f"gpu.{key}": value for key, value in gpu.sources.items()}
    sources |= {f"model.{key}": value for key, value in model.sources.items()}
    sources["memory_utilisation"] = "vLLM's default"
    sources["activation_bytes"] = "assumed"
    return Profile(
        name=name,
        spec=spec,
        gpu=gpu_name,
        model=model_name,
        accelerator=gpu.accelerator,
        architecture=model.architecture,
        kv_bytes_per_token=model.architecture.kv_bytes_per_token,
        kv_tokens=file.kv_tokens or _kv_tokens(file, gpu_name, gpu, model_name, model),
        max_num_batched_tokens=file.max_num_batched_tokens or gpu.max_num_batched_tokens,
        max_num_seqs=file.max_num_seqs or gpu.max_num_seqs,
        cost=cost,
        host_link=gpu.host_link,
        sources=sources | file.sources,
    )


def _room_tokens(file: ProfileFile, gpu: GpuFile, model: ModelFile) -> int:
    """Tokens of KV beside weights and activations, in whole blocks of 16; may be < 0."""
    usable = gpu.accelerator.memory_bytes * file.memory_utilisation
    room = usable - model.architecture.weight_bytes - file.activation_bytes
    return int(room // model.architecture.kv_bytes_per_token) // 16 * 16


def _kv_tokens(
    file: ProfileFile, gpu_name: str, gpu: GpuFile, model_name: str, model: ModelFile
) -> int:
    tokens = _room_tokens(file, gpu, model)
    if tokens >= MIN_KV_TOKENS:
        return tokens
    others = (_find("gpus", name, GpuFile) for name in gpu_names())
    fitting = [name for name, other in others if _room_tokens(file, other, model) >= MIN_KV_TOKENS]
    raise ProfileError(
        f"{model_name} does not fit on {gpu_name}: "
        f"{model.architecture.weight_bytes / 2**30:.1f} GiB of weights and "
        f"{file.activation_bytes / 2**30:.1f} GiB of activations in "
        f"{gpu.accelerator.memory_bytes * file.memory_utilisation / 2**30:.1f} GiB; "
        f"it fits on: {', '.join(fitting) or 'none of the known GPUs'}"
    )


def _split(name: str) -> tuple[str, str]:
    """``<gpu>-<model>`` in canonical names."""
    models = _index("models", ModelFile)
    gpus = _index("gpus", GpuFile)
    for model in sorted(models, key=len, reverse=True):
        gpu = name.removesuffix(f"-{model}")
        if gpu != name and gpu in gpus:
            return gpus[gpu], models[model]
    raise ProfileError(
        f"unknown profile {name!r}: a name is <gpu>-<model>, or the path of a .toml file; "
        f"GPUs: {_known(gpus)}; models: {_known(models)}"
    )


def _known(index: Mapping[str, str]) -> str:
    """Canonical names, each with its aliases in brackets."""
    parts: list[str] = []
    for name in sorted(set(index.values())):
        aliases = sorted(alias for alias, target in index.items() if target == name != alias)
        parts.append(f"{name} ({', '.join(aliases)})" if aliases else name)
    return ", ".join(parts)


def _find(folder: str, name: str, kind: type[_T]) -> tuple[str, _T]:
    index = _index(folder, kind)
    if name not in index:
        raise ProfileError(f"unknown {folder[:-1]} {name!r}; known: {_known(index)}")
    return index[name], _read(_DIRECTORY / folder / f"{index[name]}.toml", kind)


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (_DIRECTORY / folder).glob("*.toml"))


@cache
def _index(folder: str, kind: type[Any]) -> Mapping[str, str]:
    """Name or alias -> name."""
    index: dict[str, str] = {}
    for name in _names(folder):
        index[name] = name
        for alias in _read(_DIRECTORY / folder / f"{name}.toml", kind).aliases:
            index[alias] = name
    return index


@cache
def _read(path: Path, kind: type[_T]) -> _T:
    try:
        with path.open("rb") as stream:
            return msgspec.convert(tomllib.load(stream), kind)
    except OSError as error:
        raise ProfileError(f"cannot read profile {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ProfileError(f"profile {path}: {error}") from error
