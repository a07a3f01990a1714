# SPDX-License-Identifier: Apache-2.0
"""How long an engine step takes: a roofline per operation, reduced to eight coefficients.

One step runs a batch of sequences; sequence *i* has ``c_i`` tokens computed before and
computes ``n_i`` more. With ``T = sum(n_i)`` and ``S`` sequences, in seconds::

    step   = base + per_seq * S + linear + attention
    linear = max(weights + experts * touched(T), per_token * T)
    touched(T) = 1 - (1 - k/E) ** T
    attention  = sum_i max(per_kv_token * (c_i + n_i), per_pair * (n_i * c_i + n_i**2 / 2))

Weights and KV are read once a step at the sustained bandwidth; multiplications run at the
sustained throughput; the slower of the two decides (Williams, Waterman, Patterson:
"Roofline", CACM 52(4), 2009). The two ``max`` are separate because the kernels of a layer
run one after the other: reading KV for decodes does not hide behind the prefill's matrix
products. ``touched`` is the expected share of experts that T tokens activate when each
picks k of E at random and independently; real routing is more skewed, so this errs on the
slow side for small batches. Where every constant comes from:

* ``weights = bytes read in every step / bandwidth`` (attention, router, output layer; of the
  embedding only single rows are read), ``experts = bytes of all experts / bandwidth``
* ``per_token = 2 FLOP * parameters used by one token / throughput`` (a multiply and an
  add per weight), plus the attention of sliding-window layers, whose span is bounded
* ``per_seq = 2 FLOP * hidden * vocabulary / throughput``: the output layer runs only for
  the last token of a sequence
* ``per_kv_token = KV bytes of a token / bandwidth``
* ``per_pair = 4 FLOP * layers * heads * head size / throughput``: query x key and
  probability x value, each a multiply and an add
* ``base``: launching kernels, sampling, scheduling; measured or assumed.

Peak numbers and shapes come from :mod:`mars.profiles`, which names the source of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_CHUNK_TOKENS = 8192
"""Tokens of one step, vLLM's ``max_num_batched_tokens`` on large GPUs."""


@dataclass(slots=True, frozen=True)
class Accelerator:
    """Data-sheet peaks and what share of them is sustained.

    ``memory_bytes`` is what the driver reports; throughput is dense 16-bit FLOP/s.
    """

    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    bandwidth_efficiency: float
    compute_efficiency: float
    step_overhead_s: float


@dataclass(slots=True, frozen=True)
class Architecture:
    """Shape and weight of a model, from its published configuration.

    Parameters count single weights. ``active_parameters`` are those one token multiplies
    with, without embedding and output layer. ``weight_bytes`` is the whole model in memory,
    ``dense_bytes`` what every step reads, ``expert_bytes`` all experts (0: a dense model).
    ``num_window_layers`` of the layers attend to the last ``window_tokens`` only.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    vocabulary_size: int
    max_positions: int
    weight_bytes: int
    dense_bytes: int
    active_parameters: int
    expert_bytes: int = 0
    num_experts: int = 0
    num_experts_per_token: int = 0
    kv_element_bytes: int = 2
    num_window_layers: int = 0
    window_tokens: int = 0

    @property
    def num_full_layers(self) -> int:
        """Layers whose KV grows with the context."""
        return self.num_layers - self.num_window_layers

    @property
    def kv_bytes_per_token(self) -> int:
        """KV of one token: keys and values of every layer that keeps the whole context."""
        per_layer = 2 * self.num_kv_heads * self.head_size * self.kv_element_bytes
        return self.num_full_layers * per_layer


@dataclass(slots=True, frozen=True)
class CostModel:
    """Step time of a batch from precomputed coefficients, all in seconds.

    The formula and the source of each field are in the module's docstring. Pure, and cheap
    enough for a simulator that asks it millions of times.
    """

    base_s: float
    per_seq_s: float
    weights_s: float
    experts_s: float
    per_token_s: float
    per_pair_s: float
    per_kv_token_s: float
    expert_miss: float = 0.0
    """Probability (0..1) that one token leaves a given expert alone: 1 - k/E."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"cost model: {name} = {value!r}; must be a number >= 0")
        if self.expert_miss > 1:
            raise ValueError(f"cost model: expert_miss = {self.expert_miss!r}; must be <= 1")

    def step_s(self, work: Iterable[tuple[int, int]]) -> float:
        """Seconds of one step.

        Args:
            work: (tokens computed before, tokens computed now) of each sequence.

        Returns:
            Duration of the step; 0.0 when nothing is computed.
        """
        per_kv_token_s, per_pair_s = self.per_kv_token_s, self.per_pair_s
        num_tokens = num_seqs = kv_tokens = 0
        attention_s = 0.0
        for computed, scheduled in work:
            num_seqs += 1
            num_tokens += scheduled
            if scheduled == 1:
                kv_tokens += computed + 1
            else:
                read_s = per_kv_token_s * (computed + scheduled)
                pairs_s = per_pair_s * scheduled * (computed + 0.5 * scheduled)
                attention_s += max(pairs_s, read_s)
        if not num_tokens:
            return 0.0
        attention_s += kv_tokens * max(per_kv_token_s, per_pair_s)
        return self._rest_s(num_tokens, num_seqs) + attention_s

    def prefill_s(
        self, num_tokens: int, context_tokens: int = 0, chunk: int = DEFAULT_CHUNK_TOKENS
    ) -> float:
        """Seconds to prefill alone, in steps of ``chunk`` tokens.

        Args:
            num_tokens: tokens to compute.
            context_tokens: tokens before them whose KV is there.
            chunk: most tokens a step.
        """
        if chunk <= 0:
            raise ValueError(f"chunk = {chunk}; must be at least 1 token")
        total_s, end = 0.0, context_tokens + num_tokens
        for computed in range(context_tokens, end, chunk):
            total_s += self.step_s(((computed, min(chunk, end - computed)),))
        return total_s

    def decode_s(self, context_tokens: int, batch: int = 1) -> float:
        """Seconds of one decode step of ``batch`` sequences of ``context_tokens`` each."""
        if batch <= 0:
            return 0.0
        per_token_s = max(self.per_kv_token_s, self.per_pair_s)
        return self._rest_s(batch, batch) + batch * (context_tokens + 1) * per_token_s

    def decode_line(self, batch: int) -> tuple[float, float]:
        """A decode step of ``batch`` sequences as ``fixed + slope * KV tokens read``.

        Exactly :meth:`step_s` where every sequence computes one token; the KV tokens are
        the sum of all contexts, each with its new token.
        """
        return self._rest_s(batch, batch), max(self.per_kv_token_s, self.per_pair_s)

    def _rest_s(self, num_tokens: int, num_seqs: int) -> float:
        """Everything but attention."""
        experts_s = self.experts_s
        if experts_s:
            experts_s *= 1.0 - self.expert_miss**num_tokens
        read_s = self.weights_s + experts_s
        linear_s = max(read_s, self.per_token_s * num_tokens)
        return self.base_s + self.per_seq_s * num_seqs + linear_s


def roofline(gpu: Accelerator, model: Architecture) -> CostModel:
    """The coefficients of one model on one accelerator (formulas: module docstring)."""
    bandwidth = gpu.bandwidth_bytes_per_s * gpu.bandwidth_efficiency
    throughput = gpu.flops_per_s * gpu.compute_efficiency
    flops_per_pair_and_layer = 4 * model.num_heads * model.head_size
    window_flops = flops_per_pair_and_layer * model.num_window_layers * model.window_tokens
    share = model.num_experts_per_token / model.num_experts if model.num_experts else 1.0
    return CostModel(
        base_s=gpu.step_overhead_s,
        per_seq_s=2 * model.hidden_size * model.vocabulary_size / throughput,
        weights_s=model.dense_bytes / bandwidth,
        experts_s=model.expert_bytes / bandwidth,
        per_token_s=(2 * model.active_parameters + window_flops) / throughput,
        per_pair_s=flops_per_pair_and_layer * model.num_full_layers / throughput,
        per_kv_token_s=model.kv_bytes_per_token / bandwidth,
        expert_miss=1.0 - share,
    )
