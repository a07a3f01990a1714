# SPDX-License-Identifier: Apache-2.0
"""Logs as a process writes them: a line of JSON each, and no local variables."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import logging, sys
import structlog
from mars.cli.logs import log_to_stderr

log_to_stderr(sys.argv[1])

def fails():
    prompt = "canary-in-a-variable"
    raise ValueError("a cause")

structlog.get_logger("mars").info("ours", held=3)
for log in (structlog.get_logger("mars"), logging.getLogger("library")):
    try:
        fails()
    except ValueError:
        log.exception("failed")
print("product")
"""


def run(form: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, form]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("form", ["json", "auto"])
def test_every_line_is_json_with_time_and_level(form: str) -> None:
    ran = run(form)
    assert ran.stdout == "product\n"
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["ours", "failed", "failed"]
    assert lines[0]["held"] == 3
    assert lines[2]["logger"] == "library"
    assert all({"timestamp", "level"} <= line.keys() for line in lines)
    assert lines[1]["exception"][0]["exc_value"] == "a cause"


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_show_no_local_variables(form: str) -> None:
    ran = run(form)
    assert "a cause" in ran.stderr
    assert ran.stderr.count("canary") == 0


def test_people_get_text() -> None:
    assert "ours" in run("console").stderr.splitlines()[0]
    assert not run("console").stderr.startswith("{")
