# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from mars.core.events import (
    EngineJoined,
    EngineSampled,
    EventsDropped,
    HostKvSampled,
    HostSampled,
)
from mars.gateway.load import WINDOW_S, EngineLoad, Freshness, LoadBoard
from mars.gateway.samplers import HostSampler, TelemetryError, parse_metrics

SAMPLE = EngineLoad(
    time=0.0,
    kv_blocks_total=100,
    kv_blocks_free=40,
    kv_blocks_retained=3,
    block_size=16,
    num_running=1,
    num_waiting=2,
    preemptions=0,
    computed_tokens=0,
    recomputed_tokens=0,
)
HOST = HostSampled(
    time=0.0,
    cpu_cores=8,
    cpu_usage=0.5,
    cpu_pressure=0.1,
    tool_slots=4,
    tools_running=4,
    tools_queued=2,
    tool_queue_delay_s=1.5,
    memory_bytes_free=10,
)


def board(stale_s: float = 2.0) -> LoadBoard:
    return LoadBoard(stale_s, lambda: 7)


def test_what_was_never_seen_is_not_known() -> None:
    load = board().load(5.0)
    assert (load.kv_usage, load.recompute_ratio, load.cpu_usage, load.tools_running) == (
        None,
        None,
        None,
        None,
    )
    assert load.num_held == 7


def test_counters_are_those_of_the_sliding_window() -> None:
    made = board()
    for i in range(31):
        sample = replace(
            SAMPLE,
            time=float(i),
            computed_tokens=100 * i,
            recomputed_tokens=25 * i if i > 20 else 25 * 20,
            preemptions=i,
        )
        made.engine_sampled(sample)
    load = made.load(30.0)
    assert load.computed_tokens == 100 * WINDOW_S
    assert load.recompute_ratio == 0.25
    assert load.preemptions == WINDOW_S


def test_an_engine_that_restarted_begins_a_new_window() -> None:
    made = board()
    made.engine_sampled(replace(SAMPLE, time=1.0, preemptions=50, computed_tokens=9000))
    made.engine_sampled(replace(SAMPLE, time=2.0, preemptions=0, computed_tokens=10))
    load = made.load(2.0)
    assert (load.preemptions, load.computed_tokens) == (0, 0)


def test_an_old_sample_is_stale_and_its_values_unknown() -> None:
    made = board()
    made.engine_sampled(SAMPLE)
    assert made.load(2.0).kv_blocks_free == 40
    assert made.load(2.1).kv_blocks_free is None
    assert made.is_stale(2.1)
    assert "2.1 s ago" in made.alarms(2.1)[0]
    made.engine_sampled(replace(SAMPLE, time=3.0))
    assert not made.is_stale(3.0)
    assert made.alarms(3.0) == []


def test_no_sample_is_only_stale_once_turns_run() -> None:
    made = board()
    assert not made.is_stale(1000.0)
    made.turns_open(1, 1000.0)
    assert not made.is_stale(1001.0)
    assert made.is_stale(1003.0)
    made.turns_open(0, 1003.0)
    assert not made.is_stale(1004.0)


def test_a_tool_pools_own_samples_win_and_its_silence_is_not_zero() -> None:
    made = board()
    made.apply(replace(HOST, tools_running=0, tool_slots=0), "gateway")
    made.apply(HOST, "tools")
    assert made.load(1.0).tools_running == 4
    made.apply(replace(HOST, time=5.0, tools_running=0), "gateway")
    load = made.load(5.0)
    assert (load.cpu_usage, load.tool_slots, load.tools_running) == (0.5, 4, None)


ENGINE = EngineSampled(
    time=0.0,
    kv_blocks_total=100,
    kv_blocks_free=40,
    kv_blocks_retained=3,
    block_size=16,
    num_running=1,
    num_waiting=2,
    num_steps=9,
    busy_s=1.0,
    computed_tokens=1000,
    recomputed_tokens=10,
    prefix_queries_tokens=0,
    prefix_hits_tokens=0,
    preemptions=4,
    shrunk_chunks=0,
)


def test_engine_telemetry_goes_from_missing_to_fresh_to_stale_and_back() -> None:
    made = board()
    assert made.engine_state(0.0) is Freshness.MISSING
    assert made.alarms(0.0) == []  # nobody runs: nothing is due
    made.apply(replace(ENGINE, time=1.0), "engine")
    assert made.engine_state(3.0) is Freshness.FRESH
    assert made.engine_state(3.1) is Freshness.STALE
    assert made.load(3.1).num_running is None
    made.apply(replace(ENGINE, time=4.0), "engine")
    assert made.engine_state(4.0) is Freshness.FRESH
    assert made.load(4.0).num_running == 1
    assert made.alarms(4.0) == []


def test_a_restarted_engine_is_unknown_until_it_speaks_and_its_counters_begin_anew() -> None:
    made = board()
    made.apply(replace(ENGINE, time=1.0), "engine")
    joined = EngineJoined(time=2.0, instance="x", engine_rank=0, first_seq=1, is_restart=True)
    made.apply(joined, "gateway")
    assert made.engine_state(2.0) is Freshness.MISSING
    assert made.load(2.0).kv_blocks_free is None
    made.apply(replace(ENGINE, time=2.1, computed_tokens=5000, preemptions=9), "engine")
    load = made.load(2.1)
    assert (load.computed_tokens, load.preemptions) == (0, 0)


def test_any_counter_that_falls_begins_a_new_window() -> None:
    made = board()
    made.apply(replace(ENGINE, time=1.0, computed_tokens=9000, preemptions=0), "engine")
    made.apply(replace(ENGINE, time=2.0, computed_tokens=10, preemptions=0), "engine")
    assert made.load(2.0).computed_tokens == 0


def test_a_gap_raises_an_alarm_until_the_window_has_passed() -> None:
    made = board()
    made.apply(replace(ENGINE, time=1.0), "engine")
    made.apply(EventsDropped(time=1.0, count=7, source="engine"), "engine")
    made.apply(EventsDropped(time=1.0, count=9, source="bus"), "gateway")  # a reader's own loss
    assert made.alarms(1.0) == ["7 engine events were lost in the last 10 s"]
    made.apply(replace(ENGINE, time=1.0 + WINDOW_S + 0.1), "engine")
    assert made.alarms(1.0 + WINDOW_S + 0.1) == []


def test_ranks_are_added_up_and_one_silent_rank_makes_the_whole_unknown() -> None:
    made = LoadBoard(2.0, lambda: 0, num_ranks=2)
    made.apply(replace(ENGINE, time=1.0), "engine")
    assert made.engine_state(1.0) is Freshness.MISSING  # rank 1 has not spoken
    assert made.load(1.0).kv_blocks_total is None
    made.turns_open(1, 0.0)
    assert made.alarms(2.5) == ["no engine telemetry yet of rank 1"]
    made.apply(replace(ENGINE, time=2.0, engine_rank=1, kv_blocks_free=10), "engine.1")
    load = made.load(2.0)
    assert (load.kv_blocks_total, load.kv_blocks_free, load.num_running) == (200, 50, 2)
    made.apply(replace(ENGINE, time=5.0), "engine")
    assert made.load(5.0).kv_blocks_total is None
    assert made.alarms(5.0) == ["engine telemetry is stale (rank 1): last sample 3.0 s ago"]


def test_host_memory_behind_the_engines_is_added_up_and_gone_with_a_restart() -> None:
    made = board()
    made.engine_sampled(SAMPLE)
    assert made.load(0.0).host_blocks_total is None
    for rank in (0, 1):
        made.apply(HostKvSampled(time=0.5, num_blocks=1000, engine_rank=rank), "engine")
    made.engine_sampled(replace(SAMPLE, time=1.0))
    assert made.load(1.0).host_blocks_total == 2000
    joined = EngineJoined(time=1.5, instance="b", engine_rank=0, first_seq=1, is_restart=True)
    made.apply(joined, "engine")
    made.engine_sampled(replace(SAMPLE, time=1.6))
    assert made.load(1.6).host_blocks_total == 1000


def test_host_telemetry_goes_stale_with_an_alarm_and_comes_back() -> None:
    made = board()
    assert made.host_state(0.0) is Freshness.MISSING
    made.apply(HOST, "gateway")
    assert (made.host_state(2.0), made.load(2.0).cpu_usage) == (Freshness.FRESH, 0.5)
    assert made.host_state(2.1) is Freshness.STALE
    assert made.load(2.1).cpu_usage is None
    assert "host telemetry is stale" in made.alarms(2.1)[0]
    made.apply(replace(HOST, time=3.0), "gateway")
    assert made.alarms(3.0) == []


def test_a_tool_pool_that_fell_silent_is_an_alarm_of_its_own() -> None:
    made = board()
    made.apply(HOST, "tools")
    made.apply(replace(HOST, time=5.0), "gateway")
    assert made.alarms(5.0) == ["the tool pool fell silent: its last sample is 5.0 s old"]


def test_the_host_sample_carries_the_tools_it_was_told() -> None:
    sample = HostSampler(lambda: (4, 3, 2, 1.0)).sample(9.0)
    assert (sample.tool_slots, sample.tools_running, sample.tools_queued) == (4, 3, 2)
    assert sample.cpu_cores >= 1
    assert sample.cpu_usage is not None
    assert 0.0 <= sample.cpu_usage <= 1.0
    assert sample.memory_bytes_free


METRICS = """\
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="200"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="200"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0",model_name="m"} 5.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
"""


def test_vllms_metrics_are_read_and_engines_added_up() -> None:
    load = parse_metrics(METRICS, now=3.0)
    assert (load.kv_blocks_total, load.kv_blocks_free, load.block_size) == (400, 100, 16)
    assert (load.num_running, load.num_waiting, load.preemptions) == (7, 0, 5)
    assert load.computed_tokens is None


@pytest.mark.parametrize(
    "name",
    [
        "vllm:cache_config_info",
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_preemptions",
    ],
)
def test_a_missing_metric_is_an_error_that_names_it(name: str) -> None:
    lines = [line for line in METRICS.splitlines() if not line.startswith(name)]
    with pytest.raises(TelemetryError, match=name):
        parse_metrics("\n".join(lines) + "\n", now=0.0)


def test_a_config_without_a_number_of_blocks_is_an_error() -> None:
    with pytest.raises(TelemetryError, match="num_gpu_blocks"):
        parse_metrics(METRICS.replace('"200"', '"None"'), now=0.0)
