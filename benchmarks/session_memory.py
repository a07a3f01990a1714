# SPDX-License-Identifier: Apache-2.0
"""Does the plug-in's memory stay bounded over 100,000 sessions?

    python benchmarks/session_memory.py [--sessions 100000] [--policies mars,mars-paper]

vLLM's real scheduler with the plug-in in virtual time: sessions of two turns and a tool call, of
which half end without a word. The resident memory of the process is read after a twentieth of the
sessions, at half and at the end, and after everybody was forgotten (to trace allocations takes five
times as long). Ends with code 1 if more than 50 MB are left over.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from mars.core.model import Session, Turn
from mars.engine.vllm.crowd import Crowd
from mars.profiles import load_profile

MAX_LEFT_BYTES = 50e6
NUM_PARTS = 20


def live(kind: type) -> int:
    """Objects of a class that anything still refers to."""
    # Not isinstance(): asking a lazily loaded module for its class loads it.
    return sum(type(one) is kind for one in gc.get_objects())


def resident_bytes() -> int:
    """Memory that the process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(policy: str, num_sessions: int) -> float:
    cost = load_profile("h100-80gb-qwen3-coder-30b-a3b").cost
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        crowd = Crowd(policy, Path(directory), cost)
        crowd.run(100)
        gc.collect()
        begun = resident_bytes()
        print(f"{policy}: sessions, MB more than before, sessions and turns known")
        for part in range(NUM_PARTS):
            crowd.run(num_sessions // NUM_PARTS)
            done = f"{crowd.num_started:,} in {time.monotonic() - start:.0f} s"
            print(f"  {policy}: {done}", file=sys.stderr)
            if part in {0, NUM_PARTS // 2 - 1, NUM_PARTS - 1}:
                gc.collect()
                print(
                    f"  {crowd.num_started:>9,} {(resident_bytes() - begun) / 1e6:8.1f} "
                    f"{live(Session):>7,} {live(Turn):>5,}",
                    flush=True,
                )
        crowd.go_quiet()
        gc.collect()
        left = resident_bytes() - begun
        print(
            f"  forgotten {left / 1e6:8.1f} {'':12} {live(Session):>7,} {live(Turn):>5,}   "
            f"{crowd.engine.num_steps:,} steps, {crowd.now:,.0f} virtual s"
        )
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--policies", default="mars,mars-paper")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    left = [measure(policy, options.sessions) for policy in options.policies.split(",")]
    return int(max(left) > MAX_LEFT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
