# SPDX-License-Identifier: Apache-2.0
"""A fixed run over vLLM's real scheduler, in virtual time: the same on every version of it.

    python scripts/golden_run.py            # print what came out, as JSON
    python scripts/golden_run.py --write    # and keep it as what is expected

Its policies are fixed here, so that what ``mars`` decides may change and this may not:
only the seams, the mechanism behind them and vLLM itself are in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mars.core.cost import CostModel
from mars.core.model import Load, Session, Turn
from mars.core.policy import BasePolicy, Rank

GOLDEN = Path(__file__).parents[1] / "tests" / "engine" / "vllm" / "golden.json"
NUM_STEPS = 1500


class EverySeam(BasePolicy):
    """Shortest prompt first, capped, shrunk, held for a second, evicted by size."""

    evicts_by_value = True
    shrinks_chunks = True
    bounds_partial_prefills = True

    def rank(self, turn: Turn, now: float) -> Rank:
        """Decodes, then by uncached tokens."""
        return (float(turn.num_uncached_tokens), turn.arrival_time)

    def prefill_quantum(self, turn: Turn, now: float) -> int | None:
        """100 tokens, which ends chunks in the middle of blocks."""
        return 100

    def retention_value(self, session: Session, load: Load, now: float) -> float:
        """Large contexts are worth more."""
        return float(session.context_tokens)

    def holds_kv(self, session: Session, load: Load, now: float) -> bool:
        """For a second of idleness."""
        return now - (session.last_turn_finished_at or now) < 1.0


CASES: dict[str, tuple[str, int, bool]] = {
    "first come": ("fcfs", 1, False),
    "first come, two in flight": ("fcfs", 2, True),
    "every seam": ("golden_run.EverySeam", 3, False),
    "every seam, two in flight": ("golden_run.EverySeam", 4, True),
}


def run_case(policy: str, seed: int, is_async: bool, cost: CostModel) -> dict[str, Any]:
    """Steps, end and events of one random run; ``digest`` is over every turn's times."""
    from mars.engine.vllm.storm import Storm

    with tempfile.TemporaryDirectory() as directory:
        storm = Storm(policy, seed, Path(directory), is_async=is_async, cost=cost)
        storm.run(NUM_STEPS)
    times = json.dumps([(name, round(at, 9)) for name, at in storm.finished])
    return {
        "steps": storm.num_steps,
        "ends_at_s": round(storm.now, 9),
        "digest": hashlib.sha256(times.encode()).hexdigest()[:16],
        "counts": dict(sorted(storm.counts.items())),
    }


def run_all() -> dict[str, Any]:
    """Every case; a cost model with round numbers, so that profiles may change."""
    cost = CostModel(
        base_s=0.005,
        per_seq_s=0.0,
        weights_s=0.0,
        experts_s=0.0,
        per_token_s=16e-6,
        per_pair_s=0.0,
        per_kv_token_s=2.5e-8,
    )
    return {name: run_case(*case, cost) for name, case in CASES.items()}


def main(arguments: Sequence[str]) -> int:
    """Print, and with ``--write`` keep, what comes out."""
    logging.disable(logging.WARNING)
    text = json.dumps(run_all(), indent=2) + "\n"
    print(text, end="")
    if "--write" in arguments:
        GOLDEN.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
