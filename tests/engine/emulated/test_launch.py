# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from mars.engine.emulated import server_arguments, server_environment
from mars.profiles import Profile


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_pool_is_the_profiles_and_one_block_for_vllm(profile: Profile) -> None:
    arguments = server_arguments(profile, Path("model"))
    assert int(option(arguments, "--num-gpu-blocks-override")) == profile.kv_tokens // 16 + 1
    # 135,488 tokens of KV: the model's 262,144 positions cannot all be used.
    assert int(option(arguments, "--max-model-len")) == profile.kv_tokens


def test_settings_reach_vllm(profile: Profile) -> None:
    arguments = server_arguments(
        profile,
        Path("model"),
        port=1234,
        kv_tokens=1000,
        time_scale=2.0,
        scheduler_cls="some.Scheduler",
        engine_config={"policy": "fcfs", "profile": None},
        extra=["--port", "99"],
    )
    assert option(arguments, "--num-gpu-blocks-override") == "63"
    assert option(arguments, "--max-model-len") == "992"
    assert option(arguments, "--scheduler-cls") == "some.Scheduler"
    assert option(arguments, "--port") == "1234"
    assert arguments[-2:] == ["--port", "99"]
    assert json.loads(option(arguments, "--additional-config")) == {
        "mars": {"policy": "fcfs", "profile": profile.spec, "time_scale": 2.0}
    }


def test_pool_too_small_says_what_to_change(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"max_model_len = 2000 .*raise kv_tokens"):
        server_arguments(profile, Path("model"), kv_tokens=1000, max_model_len=2000)
    with pytest.raises(ValueError, match="kv_tokens = 15"):
        server_arguments(profile, Path("model"), kv_tokens=15)


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        (None, None),
        ("", "mars_emulated"),
        ("other", "other,mars_emulated"),
        ("mars_emulated,other", "mars_emulated,other"),
    ],
)
def test_a_list_of_allowed_plugins_keeps_ours_in(plugins: str | None, expected: str | None) -> None:
    base = {"PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if plugins is not None:
        base["VLLM_PLUGINS"] = plugins
    environment = server_environment(base)
    assert environment.get("VLLM_PLUGINS") == expected
    assert environment["MARS_EMULATE"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == "/bin"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment
