# SPDX-License-Identifier: Apache-2.0
"""Fit the cost model of :mod:`mars.core.cost` to times measured on a live engine.

Two kinds of sample: the time to first token of one prompt alone, by its length, and the time
between tokens of a batch that only decodes, by batch and context. The first is the sum of its
prefill steps and a constant for the way there and back; the second is one step. Relative errors are
minimised, softly, so that single outliers count for little (``scipy.optimize.least_squares``,
loss ``soft_l1``), from the roofline of the profile that is given as a beginning.

What cannot be told apart from outside stays near that beginning: ``per_seq`` and the split of
``base`` and ``weights`` matter little for the curves, and curves are what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mars.core.cost import CostModel

FITTED = (
    "base_s",
    "per_seq_s",
    "weights_s",
    "experts_s",
    "per_token_s",
    "per_pair_s",
    "per_kv_token_s",
)
PRIOR = 0.01
"""Weight of one e-fold away from the beginning: against that, 1% on one sample."""
MIN_SAMPLES = 6
"""Of each kind; fewer leave the curves open."""


class CalibrationError(RuntimeError):
    """Nothing can be fitted; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Seconds to the first token of a prompt of so many new tokens, alone."""

    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Decode:
    """Seconds between two tokens while ``batch`` sequences of this context decode."""

    batch: int
    context_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured; ``chunk_tokens`` is the engine's ``max_num_batched_tokens``."""

    prefills: tuple[Prefill, ...]
    decodes: tuple[Decode, ...]
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The cost model, the constant of the way there and back, and how good they are.

    ``r2_*`` are coefficients of determination of the times themselves, ``error_*`` the
    largest relative error of any sample.
    """

    cost: CostModel
    overhead_s: float
    r2_prefill: float
    r2_decode: float
    error_prefill: float
    error_decode: float


def predicted(samples: Samples, cost: CostModel, overhead_s: float) -> tuple[Any, Any]:
    """Times that the model gives for the samples: (prefills, decodes), in seconds."""
    prefills = [
        overhead_s + cost.prefill_s(p.num_tokens, chunk=samples.chunk_tokens)
        for p in samples.prefills
    ]
    decodes = [cost.decode_s(d.context_tokens, d.batch) for d in samples.decodes]
    return np.asarray(prefills), np.asarray(decodes)


def fit(samples: Samples, start: CostModel) -> Fit:
    """Find the cost model that explains the samples best.

    Args:
        samples: as measured.
        start: the beginning, a roofline of GPU and model; its share of experts is kept.

    Raises:
        CalibrationError: too few samples, or all of one length, batch or context.
    """
    _check(samples)
    from scipy.optimize import least_squares

    prefill_s = np.asarray([p.seconds for p in samples.prefills])
    decode_s = np.asarray([d.seconds for d in samples.decodes])
    names = [name for name in FITTED if getattr(start, name) > 0.0]
    begin = np.log([*(getattr(start, name) for name in names), max(1e-4, 0.1 * prefill_s.min())])

    def unpack(logs: Any) -> tuple[CostModel, float]:
        *values, overhead_s = (float(x) for x in np.exp(logs))
        return replace(start, **dict(zip(names, values, strict=True))), overhead_s

    def errors(logs: Any) -> Any:
        cost, overhead_s = unpack(logs)
        prefills, decodes = predicted(samples, cost, overhead_s)
        off = (prefills / prefill_s - 1.0, decodes / decode_s - 1.0, PRIOR * (logs - begin))
        return np.concatenate(off)

    found = least_squares(errors, begin, loss="soft_l1", f_scale=0.05, max_nfev=400)
    cost, overhead_s = unpack(found.x)
    prefills, decodes = predicted(samples, cost, overhead_s)
    return Fit(
        cost=cost,
        overhead_s=overhead_s,
        r2_prefill=_r2(prefill_s, prefills),
        r2_decode=_r2(decode_s, decodes),
        error_prefill=float(np.max(np.abs(prefills / prefill_s - 1.0))),
        error_decode=float(np.max(np.abs(decodes / decode_s - 1.0))),
    )


def curve_error(one: CostModel, other: CostModel, samples: Samples) -> tuple[float, float]:
    """Largest relative difference of two models at the samples' points: (prefill, decode)."""
    ours, theirs = predicted(samples, one, 0.0), predicted(samples, other, 0.0)
    worst = [float(np.max(np.abs(a / b - 1.0))) for a, b in zip(ours, theirs, strict=True)]
    return worst[0], worst[1]


def _r2(measured: Any, modelled: Any) -> float:
    spread = float(np.sum((measured - measured.mean()) ** 2))
    return 1.0 - float(np.sum((measured - modelled) ** 2)) / spread if spread else 0.0


def _check(samples: Samples) -> None:
    kinds: Sequence[tuple[str, int, int]] = (
        ("prompt lengths", len(samples.prefills), len({p.num_tokens for p in samples.prefills})),
        ("batch sizes", len(samples.decodes), len({d.batch for d in samples.decodes})),
        ("contexts", len(samples.decodes), len({d.context_tokens for d in samples.decodes})),
    )
    for what, num, num_distinct in kinds:
        if num < MIN_SAMPLES or num_distinct < 2:
            raise CalibrationError(
                f"{num} samples over {num_distinct} {what} fit nothing; raise --max-tokens or "
                "--max-batch"
            )
