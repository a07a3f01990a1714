# SPDX-License-Identifier: Apache-2.0
"""Burns a given CPU time within a given wall time, holding given memory.

Stands for a recorded tool when a trace is replayed with real processes. Run it by path,
``python -I -S burn.py --cpu-s X --wall-s Y --bytes Z``, so that it starts within
milliseconds; it imports only ``sys`` and ``time``.

CPU and sleep are spread evenly over the wall time, as most tools do. On a crowded machine
it takes longer than Y, as the recorded tool would have: the CPU seconds are exact, and so
are the seconds it does not need a CPU. Its own start counts as part of X.
"""

import sys
import time

MAX_SLICES = 50
SLICE_S = 0.02
_PAGE_BYTES = 4096


def touched(num_bytes: int) -> bytearray:
    """Memory that is really there: each page is written once."""
    held = bytearray(num_bytes)
    held[::_PAGE_BYTES] = b"\1" * len(range(0, num_bytes, _PAGE_BYTES))
    return held


def burn(cpu_s: float, wall_s: float) -> None:
    """Use ``cpu_s`` of CPU in all since the process began, idle for the rest of ``wall_s``."""
    num_slices = max(1, min(MAX_SLICES, int(wall_s / SLICE_S)))
    idle_s = max(0.0, wall_s - cpu_s)
    used_s, slept_s = time.process_time(), 0.0
    for i in range(1, num_slices + 1):
        share = i / num_slices
        number = 1
        while used_s < cpu_s * share:
            for _ in range(200):
                number = number * 48271 % 2147483647
            used_s = time.process_time()
        if slept_s < idle_s * share:
            started = time.monotonic()
            time.sleep(idle_s * share - slept_s)
            slept_s += time.monotonic() - started


def main(argv: list[str]) -> int:
    """Entry point; arguments are ``--cpu-s``, ``--wall-s``, ``--bytes`` and ``--exit-code``."""
    options = {"--cpu-s": 0.0, "--wall-s": 0.0, "--bytes": 0.0, "--exit-code": 0.0}
    for name, value in zip(argv[::2], argv[1::2], strict=False):
        if name not in options:
            sys.stderr.write(f"burn: unknown option {name}; known: {', '.join(options)}\n")
            return 2
        options[name] = float(value)
    held = touched(int(options["--bytes"]))
    burn(options["--cpu-s"], options["--wall-s"])
    return int(options["--exit-code"]) if held is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
