# SPDX-License-Identifier: Apache-2.0
"""Are the greedy tokens those of stock vLLM, with memory so short that everything happens?

    python benchmarks/same_tokens.py [--policies fcfs,infercept,mars-paper,mars] [--json FILE]

vLLM's real engine core and CPU kernels on a tiny random model (needs the CPU build). Closed-loop
sessions over a pool of 63 blocks, first under vLLM's own scheduler, then under each policy: the
same prompts turn by turn, the reply that stock gave included. Time is virtual, so a run is the
same each time. Prints what happened to whom, and every turn whose tokens differ, with stock's
log-probability gap between the two likeliest tokens where they part. Ends with code 1 if a turn
differs, or if something did not happen that should have.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read by torch and vLLM when they are imported.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor

from mars.core.events import Event
from mars.core.policy import scheduling_policies
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import Wire
from mars.testing.models import tiny_model_dir
from mars.traces.content import filler

BLOCK = 32
NUM_BLOCKS = 64
STEP_S = 0.05
SHARED_TOKENS = 100

EXPECTED = {
    "fcfs": {"turn_preempted", "kv_evicted"},
    "infercept": {"turn_preempted", "kv_retained", "kv_released pressure"},
    "mars-paper": {"turn_preempted", "chunk_shrunk", "kv_retained", "kv_released pressure"},
    "mars": {"turn_preempted", "chunk_shrunk", "kv_evicted"},
}
"""What must have happened at least once, for the run to prove anything."""


@dataclass
class Turn:
    """One turn of the load: new prompt tokens, reply tokens, and the pause after it."""

    num_new: int
    num_reply: int
    pause_s: float


@dataclass
class Ran:
    """One run: tokens and log-probability gaps by (session, turn), and what happened."""

    tokens: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    gaps: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    num_steps: int = 0


def load(num_sessions: int, seed: int) -> list[tuple[float, list[Turn]]]:
    """Arrival and turns of each session; two contexts at their longest fill the pool.

    First squeezes for a scheduler that starts only what fits: seven that write, and beside them
    a prompt that just fits, and takes so many steps that it does no more before it is computed.
    """
    rng = random.Random(seed)
    sessions: list[tuple[float, list[Turn]]] = []
    for start_s, num_tokens in ((0.0, 1080), (40.0, 1120)):
        sessions += [
            (start_s + 0.1 * i, [Turn(30 + i, 250, 1.0), Turn(40, 20, 0.0)]) for i in range(7)
        ]
        sessions.append((start_s + 0.8, [Turn(num_tokens, 8, 1.0), Turn(20, 8, 0.0)]))
    for _ in range(num_sessions):
        turns: list[Turn] = []
        for _ in range(rng.randint(2, 3)):
            # One that reads much or one that writes much: the second grows into the memory
            # that the first, chunk by chunk, is about to need.
            reads = rng.random() < 0.4
            num_new = rng.randint(300, 580) if reads else rng.randint(20, 80)
            num_reply = rng.randint(3, 20) if reads else rng.randint(120, 260)
            turns.append(Turn(num_new, num_reply, rng.uniform(0.0, 3.0)))
        sessions.append((rng.uniform(10.0, 20.0), turns))
    return sessions


class Pressure:
    """One engine core, given a new scheduler for each run; model and kernels stay."""

    def __init__(self, model: Path, dtype: str, sessions: list[tuple[float, list[Turn]]]) -> None:
        arguments = EngineArgs(
            model=str(model),
            load_format="dummy",
            dtype=dtype,  # type: ignore[arg-type]
            enforce_eager=True,
            block_size=BLOCK,
            num_gpu_blocks_override=NUM_BLOCKS,
            max_model_len=(NUM_BLOCKS - 1) * BLOCK,
            max_num_batched_tokens=32,
            max_num_seqs=8,
            seed=0,
            max_logprobs=2,
        )
        config = arguments.create_engine_config()
        self.core = EngineCore(config, Executor.get_class(config), log_stats=False)
        stock = self.core.scheduler
        assert isinstance(stock, Scheduler)
        self._config, self._kv = config, stock.kv_cache_config
        self.sessions = sessions
        self.now = 0.0

    def run(self, mars: dict[str, Any] | None, stock: Ran | None) -> Ran:
        """One run; ``stock`` gives the replies that prompts go on from."""
        ran = Ran()
        self.core.scheduler = self._scheduler(mars, ran.counts)
        source = stock or ran
        due = [(at, session, 0) for session, (at, _) in enumerate(self.sessions)]
        heapq.heapify(due)
        self.now = 0.0
        while due or self.core.scheduler.has_requests():
            while due and due[0][0] <= self.now:
                _, session, index = heapq.heappop(due)
                self._submit(session, index, source)
            self.now += STEP_S
            ran.num_steps += self.core.scheduler.has_requests()
            assert ran.num_steps < 50_000, "the engine stands still"
            for session, index in self._step(ran):
                turns = self.sessions[session][1]
                if index + 1 < len(turns):
                    again = self.now + turns[index].pause_s
                    heapq.heappush(due, (again, session, index + 1))
        return ran

    def _step(self, ran: Ran) -> Iterator[tuple[int, int]]:
        outputs, is_executed = self.core.step()
        self.core.post_step(is_executed)
        for one in outputs[0].outputs if outputs else ():
            session, index = map(int, one.request_id.split("-"))
            ran.tokens.setdefault((session, index), []).extend(one.new_token_ids)
            assert one.new_logprobs is not None
            gaps = [float(row[1] - row[2]) for row in one.new_logprobs.logprobs]
            ran.gaps.setdefault((session, index), []).extend(gaps)
            if one.finish_reason is not None:
                yield session, index

    def _submit(self, session: int, index: int, source: Ran) -> None:
        turns = self.sessions[session][1]
        prompt = list(filler("shared", 0, SHARED_TOKENS))
        for earlier, turn in enumerate(turns[: index + 1]):
            prompt += filler(f"{session}-{earlier}", 0, turn.num_new)
            if earlier < index:
                prompt += source.tokens[session, earlier]
        request = EngineCoreRequest(
            request_id=f"{session}-{index}",
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=SamplingParams(
                max_tokens=turns[index].num_reply, temperature=0.0, ignore_eos=True, logprobs=2
            ),
            pooling_params=None,
            arrival_time=self.now,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            session_id=f"s{session}",
        )
        self.core.add_request(*self.core.preprocess_add_request(request))

    def _scheduler(self, mars: dict[str, Any] | None, counts: Counter[str]) -> SchedulerInterface:
        def emit(event: Event) -> None:
            counts[event.kind] += 1
            if event.kind == "kv_released":
                counts[f"kv_released {event.reason}"] += 1  # type: ignore[attr-defined]

        members = {
            "clock": staticmethod(lambda: self.now),
            "link_type": staticmethod(lambda *_: Wire(emit)),
        }
        kind = Scheduler if mars is None else type("OnMyClock", (MarsScheduler,), members)
        self._config.additional_config = {"mars": mars or {}}
        return kind(
            vllm_config=self._config,
            kv_cache_config=self._kv,
            structured_output_manager=self.core.structured_output_manager,
            block_size=BLOCK,
            log_stats=False,
        )


def differences(stock: Ran, ours: Ran) -> list[tuple[str, int, float]]:
    """Turns whose tokens differ: name, first token that does, and stock's gap there."""
    found: list[tuple[str, int, float]] = []
    for key, expected in stock.tokens.items():
        got = ours.tokens.get(key, [])
        if got != expected:
            pairs = zip(expected, got, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(got))
            found.append((f"session {key[0]} turn {key[1]}", at, stock.gaps[key][at]))
    return found


def settings(policy: str) -> dict[str, Any]:
    """Engine settings of a run: everything checked after every step."""
    return {"policy": policy, "check_integrity_every": 1, "retention": {"max_share": 0.6}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--policies", default=",".join(EXPECTED), help="or: all")
    parser.add_argument("--sessions", type=int, default=10, help="beside the first sixteen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="also write the outcome here")
    options = parser.parse_args()
    names = scheduling_policies.names() if options.policies == "all" else None
    outcome: dict[str, Any] = {}
    sessions = load(options.sessions, options.seed)
    with tempfile.TemporaryDirectory() as directory:
        pressure = Pressure(tiny_model_dir(Path(directory)), options.dtype, sessions)
        stock = pressure.run(None, None)
        num_tokens = sum(map(len, stock.tokens.values()))
        print(f"stock: {stock.num_steps} steps, {len(stock.tokens)} turns, {num_tokens} tokens")
        for policy in names or options.policies.split(","):
            ran = pressure.run(settings(policy), stock)
            differing = differences(stock, ran)
            missing = sorted(EXPECTED.get(policy, set()) - {k for k, n in ran.counts.items() if n})
            outcome[policy] = {
                "steps": ran.num_steps,
                "turns": len(ran.tokens),
                "differing": differing,
                "missing": missing,
                "counts": dict(ran.counts),
            }
            print(f"{policy}: {ran.num_steps} steps, {len(differing)} turns differ")
            happened = ("turn_preempted", "chunk_shrunk", "kv_evicted", "kv_retained")
            happened += ("kv_released pressure",)
            print("   " + ", ".join(f"{kind} {ran.counts[kind]}" for kind in happened))
            for name, at, gap in differing:
                print(f"   {name}: token {at} differs, gap {gap:.2g}")
            if missing:
                print(f"   never happened: {', '.join(missing)}")
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1))
    return int(any(one["differing"] or one["missing"] for one in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
