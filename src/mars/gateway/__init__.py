# SPDX-License-Identifier: Apache-2.0
"""The control plane in front of the engine: pass-through, identity, admission, stream."""

from mars.gateway.app import Gateway, build_app
from mars.gateway.server import StartError, listen, make_server, run

__all__ = ["Gateway", "StartError", "build_app", "listen", "make_server", "run"]
