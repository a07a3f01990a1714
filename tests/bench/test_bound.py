# SPDX-License-Identifier: Apache-2.0
"""The lower bound: below every policy on every workload, and exact where nothing competes."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from mars.bench.bound import MIXES, lower_bound
from mars.bench.bound_work import Spread, common_rate, prefill_floor_s, shared_s
from mars.bench.experiment import box_of
from mars.profiles import load_profile
from mars.sim.run import SimConfig, simulate
from mars.traces.content import layout
from mars.traces.sample import sample
from mars.traces.schema import TraceSession, TraceTool, TraceTurn
from mars.traces.synth import synth

POLICIES = [
    ("fcfs", "none", "fifo"),
    ("fcfs", "cap:2", "fifo"),
    ("mars", "mars", "shortest"),
    ("continuum-dynamic", "none", "shortest"),
    ("autellix", "cap:4", "fifo"),
]


@pytest.mark.parametrize(
    ("regime", "rate", "kv_tokens", "num_cpus", "profile"),
    [
        ("light", 0.05, 100_000, 8, "h100-qwen3-coder-30b"),
        ("light", 5.0, 60_000, 1, "h100-qwen3-coder-30b"),
        ("mixed", 0.2, 200_000, 1, "h200-gpt-oss-120b"),
        ("heavy", 0.5, 400_000, 1, "a100-llama-8b"),
        ("heavy", 50.0, 90_000, 2, "h100-llama-8b"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_policy_beats_it(
    regime: str, rate: float, kv_tokens: int, num_cpus: int, profile: str, seed: int
) -> None:
    made = synth(8, seed=seed, regime_name=regime, max_prompt_tokens=50_000)
    sessions = sample(made, 12, seed=seed, rate=rate, arrivals="poisson", max_turns=12)
    for policy, admission, tool_policy in POLICIES:
        config = SimConfig(
            policy=policy,
            admission=admission,
            tool_policy=tool_policy,
            machine=profile,
            num_cpus=num_cpus,
            kv_tokens=kv_tokens,
        )
        summary = simulate(sessions, config).summary
        bound = lower_bound(sessions, box_of(config))
        assert bound is not None
        assert summary.sessions_failed == 0
        assert summary.sct_mean_s is not None
        assert bound.mean_s <= summary.sct_mean_s * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_no_policy_beats_it_on_shapes_of_any_kind(seed: int) -> None:
    sessions = [_any_session(random.Random(f"{seed}/{i}"), i) for i in range(10)]
    config = SimConfig(policy="mars", num_cpus=1 + seed % 3, kv_tokens=40_000, tool_slots=6)
    bound = lower_bound(sessions, box_of(config))
    best = min(
        simulate(sessions, replace(config, policy=p, admission=a)).summary.sct_mean_s or 0.0
        for p, a in [("fcfs", "none"), ("mars", "mars"), ("fcfs", "cap:3")]
    )
    assert bound is not None
    assert bound.mean_s <= best * (1 + 1e-9)


def _any_session(rng: random.Random, index: int) -> TraceSession:
    turns: list[TraceTurn] = []
    prompt = rng.randint(1, 9000)
    for _ in range(rng.randint(1, 6)):
        output = rng.randint(1, 400)
        tools = tuple(
            TraceTool(name="t", duration_s=d, cpu_s=d * rng.choice((0.0, 0.5, 1.0, 3.0)))
            for d in [rng.expovariate(0.3) for _ in range(rng.randint(0, 2))]
        )
        head = min(prompt, rng.choice((0, 4000)))
        turns.append(
            TraceTurn(
                prompt_tokens=prompt,
                output_tokens=output,
                tools=tools,
                gap_s=rng.choice((0.0, 5.0)),
                shared_prefix=("client", head) if head else None,
            )
        )
        prompt = min(30_000, prompt + output + rng.randint(0, 3000))
    arrival_s = rng.uniform(0.0, 20.0)
    return TraceSession(session_id=f"s{index}", arrival_s=arrival_s, turns=tuple(turns))


def test_it_is_what_a_session_takes_where_nothing_competes() -> None:
    turn = TraceTurn(
        prompt_tokens=3000, output_tokens=200, tools=(TraceTool(name="t", duration_s=2.0),)
    )
    sessions = [TraceSession(session_id="only", arrival_s=1.0, turns=(turn,))]
    config = SimConfig()
    bound = lower_bound(sessions, box_of(config))
    taken = simulate(sessions, config).summary.sct_mean_s
    assert bound is not None
    assert bound.mean_s == pytest.approx(taken, rel=1e-3)


def test_it_sees_that_cores_and_gpu_are_shared() -> None:
    tool = TraceTurn(
        prompt_tokens=16, output_tokens=1, tools=(TraceTool(name="t", duration_s=10.0, cpu_s=10.0),)
    )
    builds = [TraceSession(session_id=f"b{i}", turns=(tool,)) for i in range(8)]
    bound = lower_bound(builds, box_of(SimConfig(num_cpus=1)))
    assert bound is not None
    # One after the other they end at 10, 20, ..., 80 s.
    assert bound.cpu_s == pytest.approx(45.0, abs=0.1)
    prompt = TraceTurn(prompt_tokens=60_000, output_tokens=1)
    prompts = [TraceSession(session_id=f"p{i}", turns=(prompt,)) for i in range(8)]
    bound = lower_bound(prompts, box_of(SimConfig(kv_tokens=130_000)))
    assert bound is not None
    assert bound.gpu_s > 3.5 * bound.alone_s


def test_a_session_that_never_fits_is_left_out() -> None:
    turn = TraceTurn(prompt_tokens=50_000, output_tokens=10)
    sessions = [TraceSession(session_id="large", turns=(turn,))]
    assert lower_bound(sessions, box_of(SimConfig(kv_tokens=40_000))) is None


@pytest.mark.parametrize("chunk", [512, 8192])
def test_no_way_of_cutting_a_prefill_is_faster_than_the_floor(chunk: int) -> None:
    cost = load_profile("h100-qwen3-coder-30b").cost
    rng = random.Random(3)
    for _ in range(50):
        total, computed = rng.randint(1, 20_000), rng.randint(0, 50_000)
        left, done, spent_s = total, computed, 0.0
        while left:
            take = min(left, rng.randint(1, chunk))
            spent_s += cost.step_s([(done, take)])
            left, done = left - take, done + take
        assert prefill_floor_s(cost, total, computed, chunk) <= spent_s * (1 + 1e-9)


def test_content_is_common_where_two_sessions_have_the_same_positions() -> None:
    def recorded(name: str, *ranges: tuple[int, int]) -> TraceSession:
        num_tokens = 64 * sum(count for _, count in ranges)
        turn = TraceTurn(prompt_tokens=num_tokens, output_tokens=5, blocks=ranges, block_size=64)
        return TraceSession(session_id=name, turns=(turn,))

    # One scope names the blocks of all recordings: the name alone says nothing.
    sessions = [recorded("a", (0, 10), (50, 20)), recorded("b", (0, 4), (70, 9))]
    sessions.append(recorded("c", (2, 6)))
    layouts = [layout(session) for session in sessions]
    spread = Spread(layouts)
    assert [spread.head_tokens(one.prompts[0]) for one in layouts] == [64 * 8, 64 * 4, 64 * 6]


@pytest.mark.parametrize("profile", ["h100-qwen3-coder-30b", "h200-gpt-oss-120b", "h100-llama-8b"])
@pytest.mark.parametrize("kv_tokens", [60_000, 400_000])
def test_no_batch_is_charged_more_than_its_step(profile: str, kv_tokens: int) -> None:
    cost, rng = load_profile(profile).cost, random.Random(kv_tokens)
    machine = box_of(SimConfig(machine=profile, kv_tokens=kv_tokens))
    for _ in range(400):
        cuts = sorted(rng.random() ** rng.choice((1, 8)) for _ in range(rng.randint(1, 30)))
        shares = [b - a for a, b in pairwise([0.0, *cuts])]
        tokens = [int(share * machine.pool_tokens) for share in shares]
        step_s = cost.step_s([(own, 1) for own in tokens])
        for mix in MIXES:
            each_s = [shared_s(cost, mix.theta, share) for share in shares]
            least_s = cost.per_seq_s + (1.0 - mix.theta) * cost.per_token_s
            rate = common_rate(machine, mix)
            charged_s = rate * sum(
                s + least_s + cost.per_kv_token_s * own
                for s, own in zip(each_s, tokens, strict=True)
            )
            room = 1.0 - mix.memory + mix.memory * sum(shares)
            assert charged_s <= step_s * room * (1 + 1e-6)
