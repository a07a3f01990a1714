# SPDX-License-Identifier: Apache-2.0
"""Read settings: a TOML file, then ``MARS_SECTION__NAME`` variables, then flags.

Later sources win setting by setting. A key nobody knows, a value of the wrong type or out of
bounds is refused with the setting's name, where it was set, and what to do.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mars.config import keys
from mars.config.schema import EngineConfig, MarsConfig
from mars.core.cost import CostModel
from mars.core.policy import (
    UnknownPolicyError,
    admission_policies,
    scheduling_policies,
    tool_policies,
)
from mars.profiles import ProfileError, load_profile

PREFIX = "MARS_"
NESTING = "__"

_S = TypeVar("_S", bound=msgspec.Struct)


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, its source, and the fix."""


def load(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> MarsConfig:
    """All settings from all sources.

    Args:
        path: A TOML file; None reads none.
        environ: Variables to read ``MARS_...`` from; None: this process's.
        flags: Dotted name to value; a string is read as the setting's type. None values
            are flags that were not given.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a wrong value.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        tree = _read_toml(Path(path))
        origins = dict.fromkeys(_leaves(tree), str(path))
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(PREFIX) and NESTING in name:
            key = name.removeprefix(PREFIX).lower().replace(NESTING, ".")
            _put(tree, origins, key, value, f"environment variable {name}")
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, origins, key, value, "the command line")
    return _build(tree, MarsConfig, origins, "the defaults")


def engine_config(additional_config: Any) -> EngineConfig:
    """The engine's settings from vLLM's ``--additional-config``.

    ``{"mars": {...}}`` carries them; ``{"mars": "mars.toml"}`` names a file whose ``[engine]``
    section (and ``MARS_ENGINE__...`` variables) do. Nothing at all means the defaults.

    Raises:
        ConfigError: as :func:`load`.
    """
    found = additional_config.get("mars") if isinstance(additional_config, dict) else None
    if isinstance(found, dict):
        return convert(found, EngineConfig, "--additional-config, key 'mars'")
    if found is None or isinstance(found, str):
        return load(found).engine
    raise ConfigError(
        "--additional-config: 'mars' must be a table of engine settings or the path of a TOML "
        f"file, not {type(found).__name__}"
    )


def convert(tree: dict[str, Any], struct: type[_S], source: str) -> _S:
    """One part of the settings from a plain tree, with errors that name ``source``.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    for key in keys.unknown_keys(tree, struct):
        raise _unknown(key, source, struct)
    return _build(tree, struct, {}, source)


def check_policies(config: MarsConfig) -> None:
    """Make every policy once, so that a wrong name or option shows before anything starts.

    Raises:
        ConfigError: names the setting and the policies there are.
    """
    engine, gateway, tools = config.engine, config.gateway, config.tools
    offers = {"cost": _cost(engine.profile)} if engine.profile else {}
    try:
        key = "engine.policy"
        scheduling_policies.create(engine.policy, offers, **engine.policy_options)
        key = "gateway.admission"
        admission_policies.create(gateway.admission, offers, **gateway.admission_options)
        key = "tools.policy"
        tool_policies.create(tools.policy, **tools.policy_options)
    except UnknownPolicyError as error:
        raise ConfigError(f"{key}: {error}") from None


def _cost(profile: str) -> CostModel:
    try:
        return load_profile(profile).cost
    except ProfileError as error:
        raise ConfigError(f"engine.profile: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for key in keys.unknown_keys(tree):
        raise _unknown(key, str(path), MarsConfig)
    return tree


def _unknown(key: str, source: str, struct: type[msgspec.Struct]) -> ConfigError:
    return ConfigError(f"{source}: unknown setting {key!r}; {keys.suggestion(key, struct)}")


def _put(tree: dict[str, Any], origins: dict[str, str], key: str, value: Any, source: str) -> None:
    """Set one dotted key in ``tree``, its value read as the setting's type."""
    type_ = keys.leaf_type(key)
    if type_ is None:
        raise _unknown(key, source, MarsConfig)
    *sections, name = key.split(".")
    branch = tree
    for section in sections:
        branch = branch.setdefault(section, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{source}: {key!r} lies inside {section!r}, which is no table")
    branch[name] = _read_value(key, value, type_, source) if isinstance(value, str) else value
    origins[key] = source


def _read_value(key: str, text: str, type_: Any, source: str) -> Any:
    if type_ is Any or keys.is_table(type_) or keys.is_list(type_):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    try:
        return msgspec.to_builtins(msgspec.convert(text, type_, strict=False))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {key} = {text!r}: {error}") from None


def _build(tree: dict[str, Any], struct: type[_S], origins: Mapping[str, str], source: str) -> _S:
    try:
        return msgspec.convert(tree, struct)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`").partition("[")[0]
        origin = origins.get(key) or next(
            (where_set for name, where_set in origins.items() if name.startswith(f"{key}.")),
            source,
        )
        raise ConfigError(f"{origin}: {key + ': ' if key else ''}{message}") from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in tree.items():
        key = prefix + name
        found += _leaves(value, f"{key}.") if isinstance(value, dict) else [key]
    return found
