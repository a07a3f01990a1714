# SPDX-License-Identifier: Apache-2.0
"""Start a command that ends when its parent does: ``leash.py PARENT_PID CORES COMMAND...``.

CORES, as in ``0,1,2``, are those that it may run on; empty: all that its parent may.

Without this, `kill -9` of `mars serve` would leave an engine behind that holds the GPU. Run
by path, so that nothing of the package is imported; replaces itself by the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""``prctl`` option, Linux 2.1.57 on; survives ``exec``."""


def main(arguments: list[str]) -> None:
    """Ask the kernel for SIGTERM at the parent's death, then become the command."""
    parent, cores, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent died before its engine started")
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execvp(command[0], command)  # noqa: S606 - replacing this process is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
