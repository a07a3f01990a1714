# SPDX-License-Identifier: Apache-2.0
"""Random weather over vLLM's real scheduler: no block lost, none freed twice.

    python benchmarks/integrity.py [--steps 1000000] [--policies mars,mars-paper] [--wall-s 480]

Every policy, with one and with two steps in flight, in virtual time: random arrivals,
aborts, session ends, cache resets, pauses, tool events, sub-agents that share a session id,
shared prefixes, pools of 24 to 100 blocks. All records are checked after every step. Ends
with code 1, the seed and what disagreed at the first failure.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mars.core.policy import scheduling_policies
from mars.engine.vllm.storm import Storm
from mars.profiles import load_profile

STEPS_PER_ENGINE = 10_000
PROFILE = "h100-80gb-qwen3-coder-30b-a3b"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--wall-s", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--policies", default=",".join(scheduling_policies.names()))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    cost = load_profile(PROFILE).cost
    policies = options.policies.split(",")
    start = time.monotonic()
    num_steps = num_engines = 0
    total: Counter[str] = Counter()
    steps_of: Counter[str] = Counter()
    cases = itertools.cycle(itertools.product(policies, (False, True)))
    for seed, (policy, is_async) in enumerate(cases, options.seed):
        if num_steps >= options.steps or time.monotonic() - start >= options.wall_s:
            break
        with tempfile.TemporaryDirectory() as directory:
            storm = Storm(policy, seed, Path(directory), is_async=is_async, cost=cost)
            try:
                storm.run(min(STEPS_PER_ENGINE, options.steps - num_steps))
            except Exception:
                print(f"policy {policy}, seed {seed}, async {is_async}, step {storm.num_steps}:")
                raise
        num_steps += storm.num_steps
        num_engines += 1
        steps_of[policy] += storm.num_steps
        total.update(storm.counts)
        done = f"{num_steps:,} of {options.steps:,} steps, {time.monotonic() - start:.0f} s"
        print(f"{done}: {policy}, seed {seed}", file=sys.stderr)
    seconds = time.monotonic() - start
    print(f"{num_steps:,} steps of {num_engines} engines in {seconds:.0f} s, all checked: sound")
    for policy, steps in sorted(steps_of.items()):
        print(f"  {policy:20s} {steps:>10,} steps")
    for what, number in sorted(total.items()):
        print(f"  {what:20s} {number:>10,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
