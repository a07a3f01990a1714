# SPDX-License-Identifier: Apache-2.0
"""Dotted names of settings: which there are, of which type, and what a wrong one meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import msgspec

from mars.config.schema import MarsConfig


def known_keys(struct: type[msgspec.Struct] = MarsConfig, prefix: str = "") -> Iterator[str]:
    """Every setting of a tree as ``section.name``, sections themselves left out."""
    for field in msgspec.structs.fields(struct):
        name = prefix + field.encode_name
        section = _section(field.type)
        if section is None:
            yield name
        else:
            yield from known_keys(section, f"{name}.")


def leaf_type(key: str, struct: type[msgspec.Struct] = MarsConfig) -> Any | None:
    """Type of the setting ``key``; ``Any`` inside an options table; None: no such setting."""
    head, _, rest = key.partition(".")
    for field in msgspec.structs.fields(struct):
        if field.encode_name != head:
            continue
        section = _section(field.type)
        if section is not None:
            return leaf_type(rest, section) if rest else None
        if rest:
            return Any if is_table(field.type) else None
        return field.type
    return None


def is_table(type_: Any) -> bool:
    """Whether a setting takes keys of its own, as the options of a policy do."""
    return isinstance(msgspec.inspect.type_info(type_), msgspec.inspect.DictType)


def is_list(type_: Any) -> bool:
    """Whether a setting is a list, as the keys of clients are."""
    return isinstance(msgspec.inspect.type_info(type_), msgspec.inspect.VarTupleType)


def unknown_keys(
    tree: dict[str, Any], struct: type[msgspec.Struct] = MarsConfig, prefix: str = ""
) -> Iterator[str]:
    """Dotted names in ``tree`` that are no settings of ``struct``."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for name, value in tree.items():
        if name not in fields:
            yield prefix + name
            continue
        section = _section(fields[name])
        if section is not None and isinstance(value, dict):
            yield from unknown_keys(value, section, f"{prefix}{name}.")


def suggestion(key: str, struct: type[msgspec.Struct] = MarsConfig) -> str:
    """What to write instead of an unknown key, as the end of a sentence."""
    known = list(known_keys(struct))
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"it is a section with {', '.join(inside)}"
    near = _nearest(key, known, [field.encode_name for field in msgspec.structs.fields(struct)])
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    section = key.rpartition(".")[0]
    siblings = [name for name in known if section and name.startswith(f"{section}.")]
    if not siblings:
        siblings = list(dict.fromkeys(name.partition(".")[0] + ".*" for name in known))
    return f"known: {', '.join(siblings)}"


def _nearest(key: str, known: list[str], sections: list[str]) -> list[str]:
    """The same name in another section, else a misspelt section, setting, or both."""
    last = key.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    if same_name:
        return same_name
    if "." not in key and (near := difflib.get_close_matches(key, sections, n=1)):
        return near
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        return near
    full_names = {name.rpartition(".")[2]: name for name in reversed(known)}
    return [full_names[name] for name in difflib.get_close_matches(last, full_names, n=1)]


def _section(type_: Any) -> type[msgspec.Struct] | None:
    return type_ if isinstance(type_, type) and issubclass(type_, msgspec.Struct) else None
