# SPDX-License-Identifier: Apache-2.0
"""``[[gateway.keys]]``: who may send requests, for which tenant, and how much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from msgspec import Meta, Struct

from mars.config.types import Count

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Goes into logs, events and metric labels."""


class KeyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bearer token. It is given in one of three ways; the last two keep it out of the file."""

    name: Name
    """Of the key, as logs and errors call it."""

    key: str | None = None
    """The token itself."""

    key_sha256: str | None = None
    """Its SHA-256 in hexadecimal: ``printf %s TOKEN | sha256sum``."""

    key_env: str | None = None
    """The environment variable that holds it."""

    tenant: Name | None = None
    """Whose sessions these are; keys may share one. None: the key's name."""

    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Share of the tenant when sessions are held: one of weight 2 gets twice the working
    set of one of weight 1. One for all keys of a tenant."""

    max_active_sessions: Count | None = None
    """Sessions of the tenant that are active at once; further ones are held. None: no bound."""

    max_held_sessions: Annotated[int, Meta(ge=0)] | None = None
    """Sessions of the tenant that are held at once; further ones get 429. None: no bound."""

    max_turns: Count | None = None
    """Requests of the tenant that the engine has at once; further ones of active sessions
    get 429, and held sessions wait. None: no bound."""

    max_requests_per_minute: Count | None = None
    """Requests with this key, of any kind; more get 429. So many may come in one burst, and
    the allowance refills evenly. None: no bound."""

    def __post_init__(self) -> None:
        given = [name for name in ("key", "key_sha256", "key_env") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"key {self.name!r} needs exactly one of key, key_sha256 and key_env, "
                f"not {' and '.join(given) or 'none'}"
            )
        digest = self.key_sha256
        if digest and (len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef")):
            raise ValueError(
                f"key_sha256 of key {self.name!r} must be 64 hexadecimal digits, as in "
                "`printf %s TOKEN | sha256sum`"
            )

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            yield name, "***" if value and name in {"key", "key_sha256"} else value

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"KeyConfig({fields})"


def check_keys(keys: Iterable[KeyConfig]) -> None:
    """Refuse keys of one name, and tenants of two weights.

    Raises:
        ValueError: names both.
    """
    names: set[str] = set()
    weights: dict[str, KeyConfig] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"two keys are named {key.name!r}; give each a name of its own")
        names.add(key.name)
        tenant = key.tenant or key.name
        first = weights.setdefault(tenant, key)
        if first.weight != key.weight:
            raise ValueError(
                f"keys {first.name!r} and {key.name!r} give tenant {tenant!r} the weights "
                f"{first.weight:g} and {key.weight:g}; give it one"
            )
