# SPDX-License-Identifier: Apache-2.0
"""The page about settings is read as a settings file: it can neither lack nor invent one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mars.config import KeyConfig, MarsConfig, load
from mars.config.keys import known_keys

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture
def block() -> str:
    found = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_defaults_on_the_page_are_the_defaults(block: str, tmp_path: Path):
    path = tmp_path / "mars.toml"
    path.write_text(block)
    assert load(path, environ={}) == MarsConfig()


def test_every_setting_is_on_the_page_and_every_example_is_valid(block: str, tmp_path: Path):
    path = tmp_path / "mars.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE))
    load(path, environ={})
    section, shown = "", set()
    for line in path.read_text().splitlines():
        if header := re.match(r"\[([\w.]+)\]", line):
            section = header[1]
            shown.add(section)
        elif setting := re.match(r"(\w+) = ", line):
            shown.add(f"{section}.{setting[1]}")
    assert set(known_keys()) <= shown


def test_every_field_of_a_key_is_on_the_page(tmp_path: Path):
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [text for text in blocks if text.startswith("[[gateway.keys]]")]
    path = tmp_path / "mars.toml"
    path.write_text(block)
    (key,) = load(path, environ={}).gateway.keys
    assert key.weight == 2
    shown = set(re.findall(r"^(?:# )?(\w+) = ", block, re.MULTILINE))
    assert shown == set(KeyConfig.__struct_fields__)
