# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import socket

import msgspec
import pytest

from mars.cli import checks
from mars.cli.checks import CHECKS, Finding, Verdict
from mars.cli.doctor import print_findings
from mars.config import EngineConfig, GatewayConfig, MarsConfig
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
        finding = checks.port(config)
    assert finding.verdict is Verdict.WARN
    assert "is in use" in finding.found
    assert "--port" in finding.fix


def test_an_unknown_policy_fails():
    finding = checks.settings(MarsConfig(engine=EngineConfig(policy="nope")))
    assert finding.verdict is Verdict.FAIL
    assert "'nope'" in finding.found


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
