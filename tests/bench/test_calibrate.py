# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import random

import pytest

from mars.bench.calibrate import CalibrationError, Decode, Prefill, Samples, curve_error, fit
from mars.bench.calibrate_http import DECODE_STEPS, Plan, measure
from mars.bench.calibrate_report import draw, profile_text, rows
from mars.core.cost import CostModel
from mars.profiles import load_profile
from mars.testing.engine import FakeEngine, serve

PLAN = Plan(max_tokens=32768, max_batch=32, pool_tokens=140_000, chunk_tokens=8192)
START = load_profile("h100-qwen3-coder-30b")


def samples_of(cost: CostModel, overhead_s: float, noise: float, seed: int = 1) -> Samples:
    rng = random.Random(seed)

    def seen(seconds: float) -> float:
        return seconds * (1.0 + rng.uniform(0.0, noise))

    return Samples(
        tuple(Prefill(n, seen(overhead_s + cost.prefill_s(n))) for n in PLAN.lengths),
        tuple(Decode(b, c, seen(cost.decode_s(c, b))) for b, c in PLAN.batches),
        PLAN.chunk_tokens,
    )


@pytest.mark.parametrize("truth", ["h100-qwen3-coder-30b", "h200-gpt-oss-120b", "a100-llama-8b"])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.8])
def test_known_curves_are_recovered_from_noisy_samples(truth: str, factor: float):
    profile = load_profile(truth)
    cost = profile.cost
    slower = {
        name: factor * getattr(cost, name) for name in ("per_token_s", "weights_s", "experts_s")
    }
    known = dataclasses.replace(cost, **slower, base_s=0.004)
    found = fit(samples_of(known, 0.003, noise=0.01), cost)
    prefill, decode = curve_error(found.cost, known, samples_of(known, 0.003, 0.0))
    assert prefill < 0.04
    assert decode < 0.04
    assert found.r2_prefill > 0.999
    assert found.r2_decode > 0.99
    # Lengths and batches in between, which were not measured.
    assert found.cost.prefill_s(11_000) == pytest.approx(known.prefill_s(11_000), rel=0.04)
    assert found.cost.decode_s(9_000, 6) == pytest.approx(known.decode_s(9_000, 6), rel=0.04)


def test_one_disturbed_sample_hardly_matters():
    taken = samples_of(START.cost, 0.003, 0.01)
    late = dataclasses.replace(taken.decodes[3], seconds=5.0 * taken.decodes[3].seconds)
    decodes = (*taken.decodes[:3], late, *taken.decodes[4:])
    found = fit(dataclasses.replace(taken, decodes=decodes), START.cost)
    assert curve_error(found.cost, START.cost, taken)[1] < 0.08
    assert found.error_decode > 0.5  # it is not hidden either


def test_too_few_samples_are_refused():
    taken = samples_of(START.cost, 0.003, 0.0)
    with pytest.raises(CalibrationError, match="prompt lengths"):
        fit(dataclasses.replace(taken, prefills=taken.prefills[:2]), START.cost)
    one_batch = tuple(dataclasses.replace(d, batch=1) for d in taken.decodes)
    with pytest.raises(CalibrationError, match="batch sizes"):
        fit(dataclasses.replace(taken, decodes=one_batch), START.cost)


def test_a_profile_file_of_the_fit_is_a_machine(tmp_path):
    taken = samples_of(START.cost, 0.003, 0.01)
    found = fit(taken, START.cost)
    path = tmp_path / "mine.toml"
    path.write_text(profile_text(START, found, 100_000, 'http://x, "today"'))
    profile = load_profile(path)
    assert profile.kv_tokens == 100_000
    assert profile.cost.base_s == pytest.approx(found.cost.base_s, rel=1e-5)
    assert "today" in profile.sources["cost"]
    shown = list(rows(taken, found))
    assert len(shown) == len(taken.prefills) + len(taken.decodes)
    assert len(draw(taken, found).axes) == 2


def test_a_plan_stays_within_the_pool():
    assert PLAN.lengths[:3] == [128, 192, 256]
    assert PLAN.lengths[-1] == 32768
    assert (1, 16384) in PLAN.batches
    assert (16, 16384) not in PLAN.batches
    assert (32, 256) in PLAN.batches


async def test_samples_are_taken_over_http():
    engine = FakeEngine()
    told: list[int] = []
    plan = Plan(max_tokens=512, max_batch=2, pool_tokens=8192, chunk_tokens=8192)
    async with serve(engine.app()) as url:
        taken = await measure(url, "fake", plan, lambda: told.append(1))
    assert [p.num_tokens for p in taken.prefills] == [128, 192, 256, 384, 512]
    assert all(p.seconds > 0 for p in taken.prefills)
    assert len(told) == plan.num_points
    bodies = [json.loads(request.body) for request in engine.seen]
    assert len({tuple(body["prompt"]) for body in bodies}) == len(bodies)  # no cache can help
    assert all(body["max_tokens"] >= DECODE_STEPS for body in bodies[-6:])
    assert {d.batch for d in taken.decodes} <= {1, 2}


async def test_an_engine_that_refuses_is_named():
    plan = Plan(max_tokens=512, max_batch=2, pool_tokens=8192, chunk_tokens=8192)
    async with serve(FakeEngine(break_after=0).app()) as url:
        with pytest.raises(CalibrationError, match="/v1/completions"):
            await measure(url, "fake", plan, lambda: None)
