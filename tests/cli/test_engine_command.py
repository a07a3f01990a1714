# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mars.cli.engine_command import EngineRequest, engine_command
from mars.cli.errors import CliError
from mars.config import EngineConfig, engine_config
from mars.profiles import ProfileError

pytestmark = pytest.mark.vllm


@pytest.fixture
def request_(tmp_path: Path) -> EngineRequest:
    config = EngineConfig(policy="fcfs", policy_options={"a": 1}, events_endpoint="ipc:///x")
    return EngineRequest(model="some/model", config=config, port=1234, directory=tmp_path)


def _value(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_the_plug_in_is_named_and_gets_its_settings(request_: EngineRequest):
    command, _ = engine_command(request_)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert _value(command, "--model") == "some/model"
    assert _value(command, "--port") == "1234"
    assert _value(command, "--host") == "127.0.0.1"
    assert _value(command, "--scheduler-cls") == "mars.engine.vllm.MarsScheduler"
    settings = json.loads(_value(command, "--additional-config"))
    assert engine_config(settings) == request_.config


def test_stock_vllm_gets_neither(request_: EngineRequest):
    command, _ = engine_command(replace(request_, is_stock=True))
    assert "--scheduler-cls" not in command
    assert "--additional-config" not in command


def test_vllms_own_flags_come_last_and_untouched(request_: EngineRequest):
    flags = ("--max-model-len", "4096", "--x=y z")
    command, _ = engine_command(replace(request_, flags=flags))
    assert tuple(command[-3:]) == flags


@pytest.mark.parametrize("flag", ["--port", "--model=x", "--scheduler-cls", "--additional-config"])
def test_a_flag_that_is_ours_to_set_is_refused(request_: EngineRequest, flag: str):
    with pytest.raises(CliError, match=flag.partition("=")[0]):
        engine_command(replace(request_, flags=(flag, "1")))


def test_without_a_model_there_is_nothing_to_serve(request_: EngineRequest):
    with pytest.raises(CliError, match="MODEL is missing") as caught:
        engine_command(replace(request_, model=None))
    assert "--emulate" in caught.value.fix


def test_an_emulated_engine_has_its_profiles_pool(request_: EngineRequest):
    config = EngineConfig(policy="fcfs", profile="h100-qwen3-coder-30b", time_scale=2.0)
    request = replace(request_, config=config, model=None, is_emulated=True, kv_tokens=32000)
    command, environment = engine_command(request)
    assert _value(command, "--num-gpu-blocks-override") == "2001"
    assert Path(_value(command, "--model")).joinpath("config.json").exists()
    assert environment["MARS_EMULATE"] == "1"
    settings = engine_config(json.loads(_value(command, "--additional-config")))
    assert (settings.policy, settings.time_scale) == ("fcfs", 2.0)


def test_a_model_name_becomes_the_emulated_engines_served_name(request_: EngineRequest):
    config = EngineConfig(profile="h100-qwen3-coder-30b")
    command, _ = engine_command(replace(request_, config=config, is_emulated=True))
    last = len(command) - 1 - command[::-1].index("--served-model-name")
    assert command[last + 1] == "some/model"


def test_an_impossible_pool_or_profile_is_refused(request_: EngineRequest):
    config = EngineConfig(profile="h100-qwen3-coder-30b")
    with pytest.raises(CliError, match="kv_tokens = 3"):
        engine_command(replace(request_, config=config, is_emulated=True, kv_tokens=3))
    unknown = EngineConfig(profile="abacus")
    with pytest.raises(ProfileError, match="abacus"):
        engine_command(replace(request_, config=unknown, is_emulated=True))


def test_host_memory_becomes_vllms_own_flag(request_: EngineRequest):
    command, _ = engine_command(replace(request_, host_kv_gib=1.5, flags=["--seed", "1"]))
    assert command[-4:] == ["--seed", "1", "--kv-offloading-size", "1.5"]
    assert "--kv-offloading-size" not in engine_command(request_)[0]


@pytest.mark.parametrize("flag", ["--kv-offloading-size=2", "--kv-transfer-config"])
def test_host_memory_is_sized_in_one_place(request_: EngineRequest, flag: str):
    with pytest.raises(CliError, match=flag.partition("=")[0]):
        engine_command(replace(request_, host_kv_gib=1.5, flags=[flag]))


def test_host_memory_of_no_size_is_refused(request_: EngineRequest):
    with pytest.raises(CliError, match="--host-kv-gib 0"):
        engine_command(replace(request_, host_kv_gib=0.0))
