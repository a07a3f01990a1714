# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.config import (
    ConfigError,
    KeyConfig,
    MarsConfig,
    check_policies,
    convert,
    engine_config,
    load,
)
from mars.config.schema import EngineConfig, GatewayConfig


def _toml(folder: Path, text: str) -> Path:
    path = folder / "mars.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_source_gives_the_defaults():
    assert load(environ={}) == MarsConfig()


def test_each_source_overrides_the_one_before(tmp_path: Path):
    path = _toml(tmp_path, '[gateway]\nport = 1\nhost = "a"\nadmission = "x"\n')
    config = load(
        path,
        environ={"MARS_GATEWAY__PORT": "2", "MARS_GATEWAY__HOST": "b"},
        flags={"gateway.port": 3, "gateway.admission": None},
    )
    assert (config.gateway.port, config.gateway.host, config.gateway.admission) == (3, "b", "x")


def test_environment_reads_values_as_their_type():
    config = load(
        environ={
            "MARS_TOOLS__SLOTS": "4",
            "MARS_ENGINE__RETENTION__MAX_SHARE": "0.25",
            "MARS_GATEWAY__API_KEY": "123",
            "MARS_ENGINE__POLICY_OPTIONS__QUANTA": "[256, 512]",
            "MARS_ENGINE__POLICY_OPTIONS__NOTE": "plain words",
        }
    )
    assert config.tools.slots == 4
    assert config.engine.retention.max_share == 0.25
    assert config.gateway.api_key == "123"
    assert config.engine.policy_options == {"quanta": [256, 512], "note": "plain words"}


def test_environment_leaves_other_names_alone():
    assert load(environ={"MARS_SESSION": "s1", "PATH": "/bin", "MARS": "x"}) == MarsConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gatway]\nport = 1\n", "unknown setting 'gatway'; did you mean 'gateway'"),
        ("port = 1\n", "did you mean 'gateway.port'"),
        ("[engine]\npolicies = 'x'\n", "did you mean 'engine.policy'"),
        ("[engine.retention]\nmax_shares = 1\n", "did you mean 'engine.retention.max_share'"),
        ("[tools]\nqqq = 1\n", "known: tools.slots"),
        ("[gateway]\nport = '80'\n", "gateway.port: Expected `int`, got `str`"),
        ("[gateway]\nport = 70000\n", "gateway.port: Expected `int` <= 65535"),
        ("[gateway]\nkeepalive_s = 500\n", "keepalive_s (500) must be below hold_budget_s"),
        ("[gateway]\ntelemetry_stale_s = 0.1\n", "must exceed control_interval_s"),
        ("[gateway]\nengine_url = 'localhost:1'\n", "must begin with http://"),
        ("engine = 3\n", "engine: Expected `object`"),
        ("x =\n", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_file_key_and_fix(tmp_path: Path, text: str, expected: str):
    path = _toml(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(tmp_path / "nowhere.toml", environ={})


def test_a_file_that_is_not_text_is_named(tmp_path: Path):
    path = tmp_path / "mars.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path, environ={})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MARS_ENGINE__POLICI": "x"}, "variable MARS_ENGINE__POLICI: unknown setting"),
        ({"MARS_GATEWAY__PORT": "many"}, "MARS_GATEWAY__PORT: gateway.port = 'many'"),
        ({"MARS_GATEWAY__PORT__X": "1"}, "unknown setting 'gateway.port.x'"),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], expected: str):
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    assert expected in str(caught.value)


def test_two_settings_are_checked_together_only_once_all_sources_are_read(tmp_path: Path):
    path = _toml(tmp_path, "[gateway]\nhold_budget_s = 4\n")
    assert load(path, environ={"MARS_GATEWAY__KEEPALIVE_S": "3"}).gateway.hold_budget_s == 4
    with pytest.raises(ConfigError, match=r"keepalive_s .5. must be below hold_budget_s .4."):
        load(path, environ={})


def test_a_section_is_not_a_setting():
    with pytest.raises(ConfigError, match=r"unknown setting 'gateway'; .*a section"):
        load(flags={"gateway": "x"}, environ={})


def test_secrets_are_not_shown():
    config = GatewayConfig(api_key="sesame", engine_api_key="open")
    assert "sesame" not in repr(MarsConfig(gateway=config))
    assert "open'" not in repr(config)
    assert "api_key=None" in repr(GatewayConfig())


def test_engine_settings_come_from_vllms_additional_config(tmp_path: Path):
    inline = engine_config({"mars": {"policy": "fcfs", "retention": {"max_hold_s": 5}}})
    assert (inline.policy, inline.retention.max_hold_s) == ("fcfs", 5)
    path = _toml(tmp_path, '[engine]\npolicy = "fcfs"\n')
    assert engine_config({"mars": str(path)}).policy == "fcfs"
    assert engine_config({}) == EngineConfig()


@pytest.mark.parametrize("found", [3, ["fcfs"], {"polcy": "fcfs"}, {"time_scale": 0}])
def test_bad_additional_config_is_refused(found: object):
    with pytest.raises(ConfigError, match="--additional-config"):
        engine_config({"mars": found})


def test_convert_names_its_source():
    with pytest.raises(ConfigError, match="hello: unknown setting 'prt'; did you mean 'port'"):
        convert({"prt": 1}, GatewayConfig, "hello")


def test_an_unknown_policy_names_the_setting_and_the_known_ones():
    config = load(environ={}, flags={"engine.policy": "nope"})
    with pytest.raises(ConfigError, match=r"engine\.policy: unknown .*'nope'; known: .*fcfs"):
        check_policies(config)


def test_every_setting_can_be_set_from_the_environment():
    """Each key's own default, written as text, reads back as itself."""
    from mars.config.keys import known_keys

    for key in known_keys():
        value = MarsConfig()
        for name in key.split("."):
            value = getattr(value, name)
        text = {"{}": "{}", "()": "[]"}.get(str(value), str(value))
        variable = f"MARS_{key.upper().replace('.', '__')}"
        if value is not None:
            assert load(environ={variable: text}) == MarsConfig(), key


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("[{name='a'}]", "needs exactly one of key, key_sha256 and key_env, not none"),
        ("[{name='a', key='x', key_env='X'}]", "not key and key_env"),
        ("[{name='a', key='x'}, {name='a', key='y'}]", "two keys are named 'a'"),
        ("[{name='a', key_sha256='12'}]", "64 hexadecimal digits"),
        ("[{name='a b', key='x'}]", "gateway.keys"),
        ("[{name='a', key='x', waight=2}]", "waight"),
        ("[{name='a', key='x', weight=0}]", "gateway.keys"),
        (
            "[{name='a', key='x', tenant='t'}, {name='b', key='y', tenant='t', weight=2}]",
            "keys 'a' and 'b' give tenant 't' the weights 1 and 2",
        ),
    ],
)
def test_a_wrong_key_is_refused_by_name(tmp_path: Path, keys: str, expected: str):
    path = _toml(tmp_path, f"[gateway]\nkeys = {keys}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_keys_are_not_shown():
    keys = (KeyConfig(name="a", key="sesame"), KeyConfig(name="b", key_sha256="0f" * 32))
    shown = repr(MarsConfig(gateway=GatewayConfig(keys=keys, admin_key="boss")))
    assert "name='a'" in shown
    assert not any(secret in shown for secret in ("sesame", "0f0f", "boss"))


def test_keys_may_come_from_the_environment():
    text = '[{"name": "a", "key_env": "A_KEY"}]'
    assert load(environ={"MARS_GATEWAY__KEYS": text}).gateway.keys[0].key_env == "A_KEY"
