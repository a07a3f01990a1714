# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import psutil
import pytest

from mars.testing.server import ApiServer, ServerFailedError, free_port

# Answers /health 200 after REFUSALS times 503, and starts a child that outlives it.
STAND_IN = """
import http.server, os, subprocess, sys
if "--fail" in sys.argv:
    sys.exit("no such model")
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("child", child.pid, flush=True)
refusals = int(os.environ["REFUSALS"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global refusals
        refusals -= 1
        self.send_response(503 if refusals >= 0 else 200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def make_server(directory: Path, *flags: str, refusals: int = 0, ready_s: float = 30) -> ApiServer:
    (directory / "stand_in.py").write_text(STAND_IN)
    environment = os.environ | {"PYTHONPATH": str(directory), "REFUSALS": str(refusals)}
    return ApiServer(
        ["--port", str(free_port()), *flags],
        environment=environment,
        log_path=directory / "log",
        module="stand_in",
        ready_s=ready_s,
    )


def test_waits_until_healthy_and_ends_the_whole_group(tmp_path: Path) -> None:
    with make_server(tmp_path, refusals=2) as server:
        assert server.is_healthy()
        process = psutil.Process(server.pid)
        child = psutil.Process(int(server.log_path.read_text().split()[1]))
        assert child.is_running()
    assert not process.is_running()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not server.is_healthy()


def test_process_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServerFailedError, match=r"code 1.*(?s:.)*no such model"):
        make_server(tmp_path, "--fail").__enter__()


def test_never_healthy_is_reported_and_stopped(tmp_path: Path) -> None:
    server = make_server(tmp_path, refusals=10**6, ready_s=1.0)
    with pytest.raises(ServerFailedError, match="not ready after 1 s"):
        server.__enter__()
    with pytest.raises(ServerFailedError, match="not started"):
        _ = server.pid
