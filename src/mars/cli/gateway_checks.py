# SPDX-License-Identifier: Apache-2.0
"""What `mars doctor` looks at of the gateway: address, keys, engine, spans."""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import urllib.parse

from mars.cli.errors import CliError
from mars.cli.findings import Finding, Verdict
from mars.cli.ports import require_free
from mars.config import ConfigError, MarsConfig, is_loopback

TIMEOUT_S = 2.0


def port(config: MarsConfig) -> Finding:
    """Whether the gateway's port is free."""
    host, number = config.gateway.host, config.gateway.port
    try:
        require_free(host, number, "gateway.port")
    except CliError as error:
        return Finding(Verdict.WARN, "port", error.cause, error.fix)
    return Finding(Verdict.OK, "port", f"{host}:{number} is free")


def keys(config: MarsConfig) -> Finding:
    """Whether every key can be used, and who may do what without one."""
    from mars.gateway.keyring import digests_of

    gateway = config.gateway
    try:
        digests_of(gateway)
    except ConfigError as error:
        return Finding(Verdict.FAIL, "keys", str(error), "correct it, or leave the key out")
    num_keys = len(gateway.keys) + bool(gateway.api_key)
    found = f"{num_keys} of clients, {'one' if gateway.admin_key else 'none'} of the operator"
    if is_loopback(gateway.host):
        return Finding(Verdict.OK, "keys", f"{found}; only this host can reach the gateway")
    if not gateway.admin_key:
        fix = "set MARS_GATEWAY__ADMIN_KEY, or listen on 127.0.0.1"
        return Finding(Verdict.FAIL, "keys", f"{found}; the gateway will refuse to start", fix)
    if not num_keys:
        fix = "set MARS_GATEWAY__API_KEY or [[gateway.keys]], and a TLS proxy in front"
        return Finding(Verdict.WARN, "keys", f"{found}; any host may send requests", fix)
    return Finding(Verdict.OK, "keys", found)


def engine(config: MarsConfig) -> Finding:
    """Whether the engine answers, and whether it shows its load."""
    url = config.gateway.engine_url
    try:
        if (status := _get(url, "/health")) != http.client.OK:
            fix = "look into its log"
            return Finding(Verdict.WARN, "engine", f"{url}/health answers {status}", fix)
        status = _get(url, "/metrics")
    except (OSError, http.client.HTTPException) as error:
        fix = "`mars serve` starts one; name another with gateway.engine_url"
        return Finding(Verdict.WARN, "engine", f"nothing healthy at {url}: {error}", fix)
    if status != http.client.OK and config.telemetry.events_endpoint is None:
        fix = "start it without --disable-log-stats, or with the plug-in and its events"
        found = f"{url} is healthy, but /metrics answers {status}: its load is not known"
        return Finding(Verdict.WARN, "engine", found, fix)
    return Finding(Verdict.OK, "engine", f"{url} is healthy")


def spans(config: MarsConfig) -> Finding:
    """Whether spans can be made and sent."""
    if not config.telemetry.spans:
        return Finding(Verdict.OK, "spans", "off (telemetry.spans)")
    if importlib.util.find_spec("opentelemetry") is None:
        fix = "pip install 'mars-serving[otel]'"
        return Finding(Verdict.FAIL, "spans", "OpenTelemetry is not installed", fix)
    url = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"
    )
    parts = urllib.parse.urlsplit(url)
    try:
        at = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        socket.create_connection(at, timeout=TIMEOUT_S).close()
    except OSError as error:
        fix = (
            "start a collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT; spans are lost until then"
        )
        return Finding(Verdict.WARN, "spans", f"nothing listens at {url}: {error}", fix)
    return Finding(Verdict.OK, "spans", f"sent to {url}")


def _get(url: str, path: str) -> int:
    """Status of a GET."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        return connection.getresponse().status
    finally:
        connection.close()


GATEWAY_CHECKS = (port, keys, engine, spans)
