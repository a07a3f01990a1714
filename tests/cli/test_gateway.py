# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from mars.cli.ports import free_port as another_port
from tests.cli.conftest import Background, Run, wait_until


@pytest.fixture
def engine_url() -> Iterator[str]:
    """A fake engine in a process of its own."""
    port = another_port()
    with subprocess.Popen(
        [sys.executable, "-m", "mars.testing.engine", "--port", str(port), "--num-tokens", "3"]
    ) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url))
        yield url
        process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False


def test_it_stands_before_a_running_engine(
    background: Callable[..., Background], engine_url: str, free_port: int
):
    gateway = background(
        "gateway", "--engine", f"{engine_url}/v1/", "--port", str(free_port), "--admission", "none"
    )
    gateway.says(f"MARS serves http://127.0.0.1:{free_port}/v1")
    reply = httpx2.get(f"http://127.0.0.1:{free_port}/v1/models")
    assert reply.json() == httpx2.get(f"{engine_url}/v1/models").json()
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(60) == 0


def test_port_zero_says_which_it_took(background: Callable[..., Background], engine_url: str):
    gateway = background("gateway", "--engine", engine_url, "--port", "0", "--admission", "none")
    url = gateway.says("MARS serves").split()[2]
    assert httpx2.get(f"{url}/models").status_code == 200


def test_a_dead_engine_is_one_clear_error(mars: Run, free_port: int):
    url = f"http://127.0.0.1:{another_port()}"
    ran = mars("gateway", "--engine", url, "--port", str(free_port), "--admission", "none")
    assert ran.returncode == 1
    assert f"gateway.engine_url: no healthy engine answers at {url}/health" in ran.stderr
    assert "fix: start vLLM there" in ran.stderr


def test_an_engine_may_come_later(background: Callable[..., Background], free_port: int):
    port = another_port()
    url = f"http://127.0.0.1:{port}"
    gateway = background(
        "gateway",
        "--engine",
        url,
        "--port",
        str(free_port),
        "--admission",
        "none",
        "--wait-s",
        "60",
    )
    with subprocess.Popen(
        [sys.executable, "-m", "mars.testing.engine", "--port", str(port)]
    ) as engine:
        gateway.says("MARS serves")
        engine.terminate()


def test_a_url_without_scheme_is_refused(mars: Run):
    ran = mars("gateway", "--engine", "gpu-box:8000")
    assert "engine_url 'gpu-box:8000' must begin with http://" in ran.stderr


def test_a_hang_up_reads_the_file_again_and_flags_still_win(
    background: Callable[..., Background], engine_url: str, tmp_path: Path
):
    path = tmp_path / "mars.toml"
    path.write_text("[gateway]\nmax_body_bytes = 100\n")
    gateway = background(
        *("gateway", "--config", str(path), "--engine", engine_url, "--port", "0"),
        *("--admission", "none", "--set", "telemetry.log_format=json"),
    )
    url = gateway.says("MARS serves").split()[2]
    assert httpx2.post(f"{url}/completions", content=b" " * 50).status_code == 400
    path.write_text("[gateway]\nmax_body_bytes = 10\nadmission = 'cap:1'\nport = 1\n")
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings reloaded" in gateway.err.read_text())
    (line,) = [line for line in gateway.err.read_text().splitlines() if "reloaded" in line]
    told = json.loads(line)
    assert told["changed"] == ["gateway.max_body_bytes"]  # the others were given as flags
    assert told["needs_restart"] == []
    assert httpx2.post(f"{url}/completions", content=b" " * 50).status_code == 413


def test_another_address_needs_an_admin_key(mars: Run):
    ran = mars("gateway", "--host", "0.0.0.0", "--port", "0", "--admission", "none")
    assert ran.returncode == 1
    assert "set gateway.admin_key" in ran.stderr
