# SPDX-License-Identifier: Apache-2.0
"""Bearer keys: who sent a request, checked in constant time."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from mars.config import ConfigError, GatewayConfig, KeyConfig
from mars.gateway.openai import MAX_RETRY_S, ApiError
from mars.gateway.tenants import DEFAULT, Tenants

Scope = MutableMapping[str, Any]


class Caller:
    """Who sends with one key, and how much of its rate is left.

    Args:
        tenant: whose sessions it starts.
        per_minute: requests allowed, in one burst and then refilled evenly; None: any.
        now: monotonic seconds.
    """

    def __init__(self, tenant: str, per_minute: int | None = None, now: float = 0.0) -> None:
        self.tenant = tenant
        self.per_minute = per_minute
        self._left = float(per_minute or 0)
        self._filled_at = now

    def wait_s(self, now: float) -> float:
        """Take one request from the allowance; 0, or how long until there is one (s)."""
        if self.per_minute is None:
            return 0.0
        passed_s = max(0.0, now - self._filled_at)
        self._left = min(self.per_minute, self._left + passed_s * self.per_minute / 60.0)
        self._filled_at = now
        if self._left < 1.0:
            return (1.0 - self._left) * 60.0 / self.per_minute
        self._left -= 1.0
        return 0.0

    def allow(self, tenant: str, per_minute: int | None) -> None:
        """Change whose it is and how much it may send; what is left of the rate stays."""
        self._left += (per_minute or 0) - (self.per_minute or 0)
        self.tenant, self.per_minute = tenant, per_minute


class Keyring:
    """All keys of the gateway. No key is kept, only SHA-256 digests.

    Args:
        config: the keys.
        tenants: counts what is refused.
        clock: monotonic seconds.
        environ: where ``key_env`` is looked up.

    Raises:
        ConfigError: a ``key_env`` that is not set, or two keys with one token.
    """

    def __init__(
        self,
        config: GatewayConfig,
        tenants: Tenants,
        clock: Callable[[], float],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._tenants = tenants
        self._clock = clock
        self._environ = environ
        self._anyone = Caller(DEFAULT)
        self._callers: dict[str, Caller] = {}
        self._digests: list[tuple[bytes, Caller]] = []
        self._admin = self._metrics = b""
        self.replace(config)

    def replace(self, config: GatewayConfig) -> None:
        """From now on these keys count; nothing changes if one cannot be used.

        Raises:
            ConfigError: as when made.
        """
        digests = digests_of(config, self._environ)
        now, callers = self._clock(), {}
        for key in config.keys:
            tenant, rate = key.tenant or key.name, key.max_requests_per_minute
            caller = self._callers.get(key.name) or Caller(tenant, rate, now)
            caller.allow(tenant, rate)
            callers[key.name] = caller
        self._callers = callers
        self._digests = [(digest, callers[name]) for name, digest in digests.items()]
        if config.api_key:
            self._digests.append((_digest(config.api_key.encode()), self._anyone))
        self._admin = _digest(config.admin_key.encode()) if config.admin_key else b""
        self._metrics = _digest(config.metrics_key.encode()) if config.metrics_key else b""

    @property
    def has_admin_key(self) -> bool:
        """Whether state, events, reload and drain have a key of their own."""
        return bool(self._admin)

    def caller(self, scope: Scope) -> Caller:
        """Who sent a request.

        Raises:
            ApiError: 401, none of the keys.
        """
        if not self._digests:
            return self._anyone
        found = self._find(_digest(given_key(scope)))
        if found is None:
            raise _unauthorized("the gateway's key")
        return found

    def count(self, caller: Caller) -> None:
        """Take one request from a caller's allowance.

        Raises:
            ApiError: 429, more than ``max_requests_per_minute``.
        """
        wait_s = caller.wait_s(self._clock())
        if wait_s > 0.0:
            bound = f"{caller.per_minute} requests per minute"
            retry_s = min(MAX_RETRY_S, math.ceil(wait_s))
            raise self._tenants.refuse(caller.tenant, "max_requests_per_minute", bound, retry_s)

    def admit_admin(self, scope: Scope) -> None:
        """Let the admin key pass; any client's where there is none.

        Raises:
            ApiError: 401 without a key that is known, 403 with a client's.
        """
        if not self._admin:
            self.caller(scope)
        elif not self.is_admin(scope):
            if self._digests and self._find(_digest(given_key(scope))) is not None:
                raise ApiError(403, "this endpoint asks for gateway.admin_key, not a client's key")
            raise _unauthorized("gateway.admin_key")

    def is_admin(self, scope: Scope) -> bool:
        """Whether the admin key was sent."""
        return bool(self._admin) and hmac.compare_digest(_digest(given_key(scope)), self._admin)

    def admit_metrics(self, scope: Scope) -> None:
        """Let the metrics key pass, or the admin key; anybody where there is no metrics key.

        Raises:
            ApiError: 401.
        """
        if not self._metrics or self.is_admin(scope):
            return
        if not hmac.compare_digest(_digest(given_key(scope)), self._metrics):
            raise _unauthorized("gateway.metrics_key")

    def _find(self, given: bytes) -> Caller | None:
        """Whose key has this digest; every key is compared, whichever it is."""
        found = None
        for digest, caller in self._digests:
            if hmac.compare_digest(digest, given):
                found = caller
        return found


def given_key(scope: Scope) -> bytes:
    """The key of a request, as OpenAI's or Anthropic's clients send it."""
    given = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" else value
        if name == b"x-api-key":
            given = value
    return given


def digests_of(config: GatewayConfig, environ: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """SHA-256 of each of ``gateway.keys``, by the key's name.

    Raises:
        ConfigError: a variable that is not set, or two keys with one token.
    """
    digests: dict[str, bytes] = {}
    owners: dict[bytes, str] = {}
    if config.api_key:
        owners[_digest(config.api_key.encode())] = "gateway.api_key"
    if config.admin_key:
        owners[_digest(config.admin_key.encode())] = "gateway.admin_key"
    for key in config.keys:
        digest = _digest_of(key, environ)
        if owner := owners.get(digest):
            raise ConfigError(
                f"gateway.keys: {key.name!r} is the same token as {owner}; give it another"
            )
        owners[digest] = repr(key.name)
        digests[key.name] = digest
    return digests


def _digest_of(key: KeyConfig, environ: Mapping[str, str]) -> bytes:
    if key.key_sha256:
        return bytes.fromhex(key.key_sha256)
    token = key.key or environ.get(key.key_env or "", "")
    if not token:
        raise ConfigError(
            f"gateway.keys: the variable {key.key_env} of key {key.name!r} is not set; set it "
            "before the gateway starts, or give key_sha256"
        )
    return _digest(token.encode())


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _unauthorized(what: str) -> ApiError:
    return ApiError(
        401,
        f"send {what} as 'Authorization: Bearer KEY'",
        headers={"WWW-Authenticate": "Bearer"},
    )
