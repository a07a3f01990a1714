# SPDX-License-Identifier: Apache-2.0
"""Synthetic traces repeat, hold together, and stay close to the recordings."""

from __future__ import annotations

import numpy as np
import pytest

from mars.traces.content import common_prefix_tokens, prompt_segments, reply_segment
from mars.traces.describe import compare, describe
from mars.traces.errors import TraceError
from mars.traces.io import read_trace
from mars.traces.params import density, draw_mixture, draw_quantiles
from mars.traces.regimes import REGIMES
from mars.traces.schema import TraceSession, check_session, decode_session, encode_session
from mars.traces.synth import synth
from mars.traces.toolcost import call_rng, fill_in


@pytest.mark.parametrize("name", [*REGIMES, "hybrid"])
def test_sessions_repeat_and_are_valid(name: str) -> None:
    sessions = synth(12, seed=7, regime_name=name, rate=0.2, arrivals="gamma:2")
    assert sessions == synth(12, seed=7, regime_name=name, rate=0.2, arrivals="gamma:2")
    assert sessions != synth(12, seed=8, regime_name=name, rate=0.2, arrivals="gamma:2")
    assert len({session.session_id for session in sessions}) == 12
    for session in sessions:
        check_session(session)
        assert decode_session(encode_session(session)) == session


def test_more_sessions_begin_with_the_same_ones() -> None:
    few, many = synth(4, seed=1), synth(9, seed=1)
    assert many[:4] == few


def test_prompts_hold_the_turn_before_unless_compacted() -> None:
    num_compacted = 0
    for session in synth(30, seed=2, regime_name="interactive"):
        for k in range(1, len(session.turns)):
            before = [*prompt_segments(session, k - 1), reply_segment(session, k - 1)]
            common = common_prefix_tokens(before, prompt_segments(session, k))
            said = session.turns[k - 1].prompt_tokens + session.turns[k - 1].output_tokens
            if session.turns[k].reused_tokens == 0:
                num_compacted += 1
                assert common == session.turns[k].shared_prefix[1]  # type: ignore[index]
            else:
                assert common == said
    assert num_compacted > 0


# The bounds are a little above the distances of 300 sessions to the recordings at hand; the cuts
# inside the package are selections, so statistics per session are not compared.
LIGHT = {"output_tokens": 0.08, "append_tokens": 0.11, "tool_s": 0.13, "gap_s": 0.13}
INTERACTIVE = {"output_tokens": 0.09, "append_tokens": 0.11, "tool_s": 0.2, "gap_s": 0.06}


@pytest.mark.parametrize(
    ("name", "public", "bounds"),
    [("light", "public:swe-agent", LIGHT), ("interactive", "public:claude-code", INTERACTIVE)],
)
def test_statistics_match_the_recordings(name: str, public: str, bounds: dict[str, float]) -> None:
    distances = compare(synth(300, seed=1, regime_name=name), read_trace(public))
    found = {d.statistic: d.ks for d in distances}
    assert {k: found[k] for k in bounds if found[k] > bounds[k]} == {}


@pytest.mark.parametrize(
    ("name", "p50_s", "p90_s", "top1_share"),
    [("light", 0.15, 0.6, 0.2), ("mixed", 0.122, 2.3, 0.41), ("heavy", 0.036, 20.8, 0.08)],
)
def test_tool_durations_match_the_published_quantiles(
    name: str, p50_s: float, p90_s: float, top1_share: float
) -> None:
    found = describe(synth(200, seed=3, regime_name=name))
    assert found.statistics["tool_s"].p50 == pytest.approx(p50_s, rel=0.25)
    assert found.statistics["tool_s"].p90 == pytest.approx(p90_s, rel=0.45)
    assert found.top1_tool_share == pytest.approx(top1_share, abs=0.12)


def test_regimes_differ_in_what_tools_take() -> None:
    shares = [describe(synth(60, seed=1, regime_name=name)).tool_share for name in REGIMES[:3]]
    assert shares == sorted(shares)
    assert shares[0] < 0.12
    assert shares[2] > 0.4


def test_long_contexts_take_their_share() -> None:
    def first_prompts(sessions: list[TraceSession]) -> list[int]:
        return [session.turns[0].prompt_tokens for session in sessions]

    sessions = synth(200, seed=4, long_context=0.25)
    long = [session for session in sessions if session.task == "long-context"]
    assert len(long) == pytest.approx(50, abs=18)
    assert np.median(first_prompts(long)) == pytest.approx(48_000, rel=0.2)
    assert np.median([len(session.turns) for session in long]) <= 8
    assert max(first_prompts(sessions)) <= 160_000


def test_no_prompt_passes_the_limit() -> None:
    sessions = synth(40, seed=5, regime_name="interactive", max_prompt_tokens=50_000)
    assert max(t.prompt_tokens for s in sessions for t in s.turns) <= 50_000


@pytest.mark.parametrize(
    "settings", [{"n": 0}, {"n": 1, "regime_name": "x"}, {"n": 1, "long_context": 1.5}]
)
def test_senseless_settings_are_one_error(settings: dict[str, int]) -> None:
    with pytest.raises(TraceError, match=r"\.$"):
        synth(**settings)  # type: ignore[arg-type]


def test_mixtures_have_their_median_and_density() -> None:
    rng = np.random.default_rng(0)
    drawn = draw_mixture(rng, [[1.0, 40.0, 0.5]], 20_000)
    assert np.median(drawn) == pytest.approx(40.0, rel=0.03)
    grid = np.exp(np.linspace(-5, 10, 3000))
    mass = sum(density(x, [[0.3, 2.0, 0.4], [0.7, 90.0, 1.0]]) for x in grid) * 15 / 2999
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_quantiles_are_met_and_bounded() -> None:
    fit = {"p10": 1.0, "p50": 4.0, "p90": 9.0, "max": 11.0}
    drawn = draw_quantiles(np.random.default_rng(1), fit, 50_000)
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx([1.0, 4.0, 9.0], rel=0.03)
    assert drawn.max() <= 11.0


def test_unknown_tools_cost_what_their_duration_suggests() -> None:
    def cpu_s(name: str, duration_s: float) -> list[float]:
        return [fill_in(name, duration_s, call_rng(0, "s", turn, 0)).cpu_s for turn in range(200)]

    assert max(cpu_s("tool", 0.03)) <= 0.03
    assert 0.5 < np.mean(cpu_s("tool", 2.0)) < 2.0
    assert max(cpu_s("read", 60.0)) <= 0.1
    assert max(cpu_s("read", 0.01)) <= 0.01
    assert min(cpu_s("git", 0.05)) >= 0.03
    assert fill_in("test", 5.0, call_rng(0, "s", 0, 0)) == fill_in(
        "test", 5.0, call_rng(0, "s", 0, 0)
    )
    assert fill_in("test", 5.0, call_rng(0, "s", 0, 0)) != fill_in(
        "test", 5.0, call_rng(1, "s", 0, 0)
    )
