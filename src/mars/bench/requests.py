# SPDX-License-Identifier: Apache-2.0
"""Per-request details in the shape of ``vllm bench serve --save-result --save-detailed``.

So that scripts made for vLLM's own benchmark read a replay, too. Lists are in the order of
sending; times are modelled seconds, ``*_ms`` milliseconds. Inter-token times are means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mars.bench.result import Result, TurnRecord


def write_requests(path: Path, result: Result, model: str) -> None:
    """Write the request details of ``result`` to ``path``."""
    path.write_text(json.dumps(request_details(result, model), allow_nan=False) + "\n")


def request_details(result: Result, model: str) -> dict[str, Any]:
    """The mapping that ``vllm bench serve`` would have saved for these requests."""
    sent = sorted(
        ((turn, s.session_id) for s in result.sessions for turn in s.turns),
        key=lambda pair: (pair[0].sent_s, pair[1]),
    )
    turns = [turn for turn, _ in sent]
    done = [t for t in turns if t.error is None and t.end_s is not None]
    duration_s = result.summary.duration_s
    total_in = sum(t.prompt_tokens for t in done)
    total_out = sum(t.output_tokens for t in done)
    return {
        "date": (result.environment or {}).get("date"),
        "backend": "openai",
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(turns),
        "request_rate": "closed loop",
        "burstiness": None,
        "max_concurrency": None,
        "duration": duration_s,
        "completed": len(done),
        "failed": len(turns) - len(done),
        "total_input_tokens": total_in,
        "total_output_tokens": total_out,
        "request_throughput": _rate(len(done), duration_s),
        "output_throughput": _rate(total_out, duration_s),
        "total_token_throughput": _rate(total_in + total_out, duration_s),
        **_spread("ttft", [t.ttft_s for t in done if t.ttft_s is not None]),
        **_spread("tpot", [x for t in done if (x := _tpot_s(t)) is not None]),
        **_spread("e2el", [t.end_s - t.sent_s for t in done if t.end_s is not None]),
        "session_ids": [session_id for _, session_id in sent],
        "turn_indices": [t.turn_index for t in turns],
        "input_lens": [t.prompt_tokens for t in turns],
        "output_lens": [t.output_tokens for t in turns],
        "cached_lens": [t.cached_tokens for t in turns],
        "ttfts": [t.ttft_s for t in turns],
        "itls": [[_tpot_s(t)] if _tpot_s(t) is not None else [] for t in turns],
        "start_times": [t.sent_s for t in turns],
        "errors": [t.error or "" for t in turns],
    }


def _tpot_s(turn: TurnRecord) -> float | None:
    """Mean seconds per output token after the first."""
    if turn.end_s is None or turn.ttft_s is None or turn.output_tokens < 2:
        return None
    return max(0.0, turn.end_s - turn.sent_s - turn.ttft_s) / (turn.output_tokens - 1)


def _spread(name: str, values_s: Sequence[float]) -> dict[str, float | None]:
    values_ms = np.asarray(values_s, float) * 1000.0
    if not len(values_ms):
        return dict.fromkeys(f"{what}_{name}_ms" for what in ("mean", "median", "std", "p99"))
    return {
        f"mean_{name}_ms": float(np.mean(values_ms)),
        f"median_{name}_ms": float(np.median(values_ms)),
        f"std_{name}_ms": float(np.std(values_ms)),
        f"p99_{name}_ms": float(np.percentile(values_ms, 99)),
    }


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
