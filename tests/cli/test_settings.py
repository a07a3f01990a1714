# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.cli.errors import CliError
from mars.cli.settings import SettingsFlags
from mars.config import ConfigError


def test_set_wins_over_the_verbs_own_flag_and_that_over_the_file(tmp_path: Path):
    path = tmp_path / "mars.toml"
    path.write_text("[gateway]\nport = 1\nhost = 'a'\nadmission = 'x'\n")
    flags = SettingsFlags(config=path, set=("gateway.port=3",))
    gateway = flags.read(
        {"gateway.port": 2, "gateway.host": "b", "gateway.admission": None}
    ).gateway
    assert (gateway.port, gateway.host, gateway.admission) == (3, "b", "x")


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mars.toml"
    path.write_text("[gateway]\nport = 7\n")
    monkeypatch.setenv("MARS_CONFIG", str(path))
    assert SettingsFlags().read({}).gateway.port == 7


def test_a_value_may_hold_equals_signs():
    flags = SettingsFlags(set=("gateway.api_key=a=b", "engine.policy_options.x = 2"))
    config = flags.read({})
    assert config.gateway.api_key == "a=b"
    assert config.engine.policy_options == {"x": 2}


def test_set_without_value_is_refused():
    with pytest.raises(CliError, match="--set 'gateway.port' has no '='"):
        SettingsFlags(set=("gateway.port",)).read({})


def test_set_of_an_unknown_key_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'gateway.port'"):
        SettingsFlags(set=("gateway.prt=1",)).read({})
