# SPDX-License-Identifier: Apache-2.0
"""A server that, as vLLM's does, answers ``/health`` and starts a process of its own.

``python fake_server.py PORT [stubborn]``; a stubborn one ignores SIGTERM.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    """200 to whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    core = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
    print("core", core.pid, flush=True)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
