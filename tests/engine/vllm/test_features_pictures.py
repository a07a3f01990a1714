# SPDX-License-Identifier: Apache-2.0
"""Prompts with pictures: where they may be cut, and the encoder's budget, are vLLM's to say.

The model is a text model; budget and cache of the encoder are put in by hand, of the sizes
that vLLM would reckon from a picture model's files. Everything else is vLLM's real scheduler.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from tests.engine.vllm.feature_engine import POLICIES, FeatureEngine, lengths

pytestmark = pytest.mark.vllm

PICTURE = 48
"""Tokens of one."""
COMPUTE, CACHE = 2 * PICTURE, 4 * PICTURE
"""Embeddings that one step computes, and that are kept."""
OFFSETS = (20, 130, 260)


def whole_pictures(config: VllmConfig) -> None:
    config.scheduler_config.disable_chunked_mm_input = True


def looking(directory: Path, policy: str | None) -> FeatureEngine:
    engine = FeatureEngine(directory, policy, whole_pictures)
    engine.scheduler.max_num_encoder_input_tokens = COMPUTE
    engine.scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=CACHE)
    return engine


def pictures(session: int, num_prompt: int) -> list[MultiModalFeatureSpec]:
    return [
        MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier=f"s{session}-{offset}",
            mm_position=PlaceholderRange(offset=offset, length=PICTURE),
        )
        for offset in OFFSETS
        if offset + PICTURE < num_prompt
    ]


def crowd(engine: FeatureEngine) -> dict[str, int]:
    """Sessions that show pictures and together want three times the memory; replies wanted."""
    rng, wanted = random.Random(5), dict[str, int]()
    for index in range(24):
        name, session, num_prompt = f"r{index}", index % 8, rng.randint(20, 400)
        wanted[name] = rng.randint(2, 40)
        engine.add(
            engine.request(
                name,
                num_prompt,
                wanted[name],
                session=f"s{session}",
                first=1 + 1000 * session,
                mm_features=pictures(session, num_prompt),
            )
        )
        engine.step()
    while engine.scheduler.has_requests():
        engine.step()
        for request in engine.scheduler.running:
            at = request.num_computed_tokens
            assert not any(start < at < start + PICTURE for start in cuts(request.mm_features))
    return wanted


def cuts(features: list[MultiModalFeatureSpec]) -> list[int]:
    return [feature.mm_position.offset for feature in features]


def test_fcfs_takes_vllms_own_steps(tmp_path: Path) -> None:
    stock, ours = looking(tmp_path, None), looking(tmp_path, "fcfs")
    assert crowd(stock) == crowd(ours)
    assert ours.steps == stock.steps


@pytest.mark.parametrize("policy", POLICIES)
def test_every_turn_is_answered_no_picture_is_cut_and_the_encoder_cache_is_let_go(
    tmp_path: Path, policy: str
) -> None:
    engine = looking(tmp_path, policy)
    assert crowd(engine) == lengths(engine)
    assert engine.count()["turn_finished"] == 24
    encoder = engine.scheduler.encoder_cache_manager
    assert encoder.num_freeable_slots == CACHE
    assert any(sum(step.values()) > PICTURE for step in engine.steps)
