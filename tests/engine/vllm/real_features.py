# SPDX-License-Identifier: Apache-2.0
"""Child process of ``test_real_features.py``: one real CPU engine with drafts, adapters, grammars.

Model and kernels stay; the scheduler is changed between runs: stock vLLM's, then ours. Each run
is given the same requests at once, in memory for two of the four. Prints as JSON what came out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from mars.core.events import Event
from mars.engine.vllm.scheduler import MarsScheduler
from mars.engine.vllm.virtual import Wire
from mars.testing.models import tiny_model_dir
from mars.traces.content import filler
from tests.engine.vllm.feature_engine import EVERY_SEAM

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "done": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
        "kind": {"const": "report"},
    },
    "required": ["name", "done", "tags", "kind"],
    "additionalProperties": False,
}
RUNS: dict[str, str | None] = {"stock": None, "mars": "mars", "every_seam": EVERY_SEAM}
BLOCK = 32
RANK = 8
DRAFTED = "vllm:spec_decode_num_draft_tokens"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens"
HIDDEN = 64


def write_adapter(directory: Path, seed: int) -> Path:
    """A LoRA adapter with random weights for the tiny model's attention output."""
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 64,
        "target_modules": ["o_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=generator)
    save_file(weights, directory / "adapter_model.safetensors")
    return directory


def make_engine(model: Path) -> LLM:
    """15 usable blocks of 32 tokens: two of the prompts below fit at once."""
    options: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "num_gpu_blocks_override": 16,
        "max_model_len": 448,
        "max_num_batched_tokens": 128,
        "max_num_seqs": 8,
        "seed": 0,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": RANK,
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        },
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_log_stats": False,
    }
    return LLM(model=str(model), **options)


class Asked:
    """An engine whose scheduler can be changed while it is idle."""

    def __init__(self, engine: LLM) -> None:
        self._engine = engine
        client: Any = engine.llm_engine.engine_core
        self._core: EngineCore = client.engine_core
        stock = self._core.scheduler
        assert isinstance(stock, Scheduler)
        self._config, self._kv = stock.vllm_config, stock.kv_cache_config
        self.num_preempted = 0

    def use(self, policy: str | None) -> None:
        """Stock vLLM's scheduler (None) or ours with a policy, books checked at each step."""

        def emit(event: Event) -> None:
            self.num_preempted += event.kind == "turn_preempted"

        link = {"link_type": staticmethod(lambda *_: Wire(emit))}
        kind = Scheduler if policy is None else type("Counted", (MarsScheduler,), link)
        mars = {} if policy is None else {"policy": policy, "check_integrity_every": 1}
        self._config.additional_config = {"mars": mars}
        self._core.scheduler = kind(
            vllm_config=self._config,
            kv_cache_config=self._kv,
            structured_output_manager=self._core.structured_output_manager,
            block_size=BLOCK,
            log_stats=True,
        )

    def ask(
        self, prompts: list[list[int]], params: SamplingParams, adapters: list[Any] | None = None
    ) -> dict[str, Any]:
        """All prompts at once."""
        began, before = time.monotonic(), self.num_preempted
        asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        replies = self._engine.generate(asked, params, lora_request=adapters, use_tqdm=False)
        first = [reply.outputs[0] for reply in replies]
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
        return {
            "tokens": [list(one.token_ids) for one in first],
            "texts": [one.text for one in first],
            "reasons": [str(one.finish_reason) for one in first],
            "preemptions": self.num_preempted - before,
            "replies": [len(reply.outputs) for reply in replies],
        }

    def drafts(self) -> dict[str, int]:
        """Tokens drafted and accepted since the start."""
        found = {m.name: int(getattr(m, "value", 0)) for m in self._engine.get_metrics()}
        return {"drafted": found.get(DRAFTED, 0), "accepted": found.get(ACCEPTED, 0)}


def run(asked: Asked, adapters: list[LoRARequest], plain: dict[str, Any] | None) -> dict[str, Any]:
    """Every feature once; ``plain``: stock's plain replies, which say where to stop."""
    prompts = [filler(f"turn-{i}", 0, 180 + 20 * i) for i in range(4)]
    greedy = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
    grammar = StructuredOutputsParams(json=SCHEMA)
    before = asked.drafts()
    ours = asked.ask(prompts, greedy)
    out: dict[str, Any] = {"plain": ours}
    say = ours if plain is None else plain
    out["adapters"] = asked.ask(prompts, greedy, [adapters[i % 3] for i in range(4)])
    out["grammar"] = asked.ask(
        prompts, SamplingParams(max_tokens=80, temperature=0, structured_outputs=grammar)
    )
    text = say["texts"][0][10:13]
    out["stop"] = asked.ask(
        prompts[:1], SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, stop=[text])
    )
    out["stop"]["string"] = text
    token = say["tokens"][0][12]
    out["stop_token"] = asked.ask(
        prompts[:1],
        SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, stop_token_ids=[token]),
    )
    # vLLM's CPU build, with any scheduler: a seed fails beside drafts, prompt logprobs beside LoRA.
    several = SamplingParams(max_tokens=4, temperature=0.8, n=3)
    out["several"] = asked.ask(prompts[:1], several)
    after = asked.drafts()
    out["drafts"] = {name: after[name] - before[name] for name in after}
    return out


def main(directory: Path) -> None:
    asked = Asked(make_engine(tiny_model_dir(directory)))
    adapters = [
        LoRARequest(f"adapter-{i}", i, str(write_adapter(directory / f"adapter-{i}", i)))
        for i in (1, 2, 3)
    ]
    out: dict[str, Any] = {}
    for name, policy in RUNS.items():
        asked.use(policy)
        out[name] = run(asked, adapters, out["stock"]["plain"] if out else None)
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
