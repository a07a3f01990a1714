# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import socket

import msgspec
import pytest

from mars.cli import checks, gateway_checks
from mars.cli.checks import CHECKS
from mars.cli.doctor import print_findings
from mars.cli.findings import Finding, Verdict
from mars.config import EngineConfig, GatewayConfig, KeyConfig, MarsConfig, TelemetryConfig
from mars.testing.engine import FakeEngine, serve
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not checks.vllm], ids=lambda c: c.__name__
)
def test_every_finding_that_is_not_ok_says_what_to_do(check: object):
    assert callable(check)
    finding = check(MarsConfig())
    assert isinstance(finding, Finding)
    assert finding.found
    assert (finding.verdict is Verdict.OK) == (not finding.fix)


def test_a_taken_port_is_a_warning_with_a_fix():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = MarsConfig(gateway=GatewayConfig(port=taken.getsockname()[1]))
        finding = gateway_checks.port(config)
    assert finding.verdict is Verdict.WARN
    assert "is in use" in finding.found
    assert "--port" in finding.fix


def test_an_unknown_policy_fails():
    finding = checks.settings(MarsConfig(engine=EngineConfig(policy="nope")))
    assert finding.verdict is Verdict.FAIL
    assert "'nope'" in finding.found


@pytest.mark.parametrize(
    ("settings", "verdict", "found"),
    [
        ({}, Verdict.OK, "0 of clients, none of the operator; only this host"),
        ({"host": "0.0.0.0"}, Verdict.FAIL, "refuse to start"),
        ({"host": "0.0.0.0", "admin_key": "k"}, Verdict.WARN, "any host may send"),
        ({"host": "::", "admin_key": "k", "api_key": "c"}, Verdict.OK, "1 of clients, one of"),
        ({"keys": (KeyConfig(name="a", key_env="NOT_SET_ANYWHERE"),)}, Verdict.FAIL, "NOT_SET"),
    ],
)
def test_keys_are_looked_at(settings: dict[str, object], verdict: Verdict, found: str):
    finding = gateway_checks.keys(MarsConfig(gateway=GatewayConfig(**settings)))
    assert finding.verdict is verdict
    assert found in finding.found


async def test_the_engine_is_asked(free_port: int):
    async def found(engine: FakeEngine) -> Finding:
        async with serve(engine.app()) as url:
            config = MarsConfig(gateway=GatewayConfig(engine_url=url))
            return await asyncio.to_thread(gateway_checks.engine, config)

    assert (await found(FakeEngine())).verdict is Verdict.OK
    finding = await found(FakeEngine(is_healthy=False))
    assert finding.verdict is Verdict.WARN
    assert "answers 503" in finding.found
    away = MarsConfig(gateway=GatewayConfig(engine_url=f"http://127.0.0.1:{free_port}"))
    assert "nothing healthy at" in gateway_checks.engine(away).found


def test_a_collector_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, free_port: int):
    config = MarsConfig(telemetry=TelemetryConfig(spans=True))
    url = f"http://127.0.0.1:{free_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    finding = gateway_checks.spans(config)
    assert finding.verdict is Verdict.WARN
    assert url in finding.found
    with socket.create_server(("127.0.0.1", free_port)):
        assert gateway_checks.spans(config).verdict is Verdict.OK


@pytest.mark.vllm
def test_the_seams_of_the_installed_vllm_are_found():
    finding = checks.vllm(MarsConfig())
    assert finding.verdict is Verdict.OK, finding.found


@pytest.mark.vllm
def test_json_holds_every_check_and_a_failure_is_the_exit_status(mars: Run):
    ran = mars("doctor", "--json", "--set", "gateway.admission=nope")
    assert ran.returncode == 1
    findings = msgspec.convert(json.loads(ran.stdout), list[Finding])
    assert len(findings) == len(CHECKS)
    failed = [finding.what for finding in findings if finding.verdict is Verdict.FAIL]
    assert failed == ["settings"]


def test_the_table_shows_square_brackets(capsys: pytest.CaptureFixture[str]):
    print_findings([Finding(Verdict.WARN, "x", "a[b]", "pip install 'mars-serving[vllm]'")])
    shown = capsys.readouterr().out
    assert "a[b]" in shown
    assert "mars-serving[vllm]" in shown
