# SPDX-License-Identifier: Apache-2.0
"""The gateway as a process to do things to: ``python -m mars.testing.gateway CONFIG_JSON``.

``SIGUSR1`` and ``SIGUSR2`` move the wall clock a day on and back, for this process: what
a correction by NTP or by hand does. The monotonic clock stays, as it does then.
"""

from __future__ import annotations

import signal
import sys
import time

import msgspec

from mars.config import MarsConfig
from mars.gateway import StartError, run

DAY_S = 86_400.0


class JumpingClock:
    """The wall clock, moved by signals."""

    def __init__(self) -> None:
        self._read = time.time
        self._offset_s = 0.0

    def __call__(self) -> float:
        """Unix seconds, as far as this process knows."""
        return self._read() + self._offset_s

    def jump(self, signum: int, frame: object) -> None:
        """Handle a signal."""
        self._offset_s += DAY_S if signum == signal.SIGUSR1 else -DAY_S


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    clock = JumpingClock()
    time.time = clock
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, clock.jump)
    try:
        run(msgspec.json.decode(sys.argv[1], type=MarsConfig))
    except StartError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
