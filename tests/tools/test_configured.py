# SPDX-License-Identifier: Apache-2.0
"""The settings reach the pool, and wrong ones are named."""

from __future__ import annotations

import os

import pytest

from mars.config import ConfigError
from mars.config.schema import ToolsConfig
from mars.core.policy import UnknownPolicyError
from mars.tools.configured import cores_beside, limits_of, make_pool
from mars.tools.slots import parse_cores
from tools.conftest import shell

CORE = min(os.sched_getaffinity(0))


async def test_tools_run_on_the_cores_they_are_given() -> None:
    pool = make_pool(ToolsConfig(cpu_list=str(CORE), policy="shortest"))
    result = await pool.run(shell("taskset -pc $$ || grep Cpus_allowed_list /proc/$$/status"))
    await pool.close()
    assert result.stdout.split()[-1] == str(CORE).encode()
    assert pool.slots == 1
    assert pool.policy.name == "shortest"


def test_everything_else_has_the_other_cores() -> None:
    usable = frozenset(os.sched_getaffinity(0))
    assert cores_beside(ToolsConfig()) is None
    assert cores_beside(ToolsConfig(cpu_list=str(CORE))) == (usable - {CORE} or None)
    everything = ",".join(map(str, sorted(usable)))
    assert cores_beside(ToolsConfig(cpu_list=everything)) is None


async def test_slots_and_limits_are_those_of_the_settings() -> None:
    config = ToolsConfig(slots=7, memory_bytes=1 << 20, output_bytes=99)
    pool = make_pool(config)
    assert pool.slots == 7
    await pool.close()
    assert (limits_of(config).memory_bytes, limits_of(config).output_bytes) == (1 << 20, 99)


@pytest.mark.parametrize("text", ["a", "1-", "9999", "", "-1", "1,,2"])
def test_cores_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cores"):
        parse_cores(text)
    with pytest.raises(ConfigError, match=r"tools\.cpu_list"):
        make_pool(ToolsConfig(cpu_list=text))


def test_lists_and_ranges_are_read() -> None:
    usable = sorted(os.sched_getaffinity(0))
    text = ",".join(map(str, usable))
    assert parse_cores(text) == frozenset(usable)
    assert parse_cores(f"{CORE}-{CORE}") == {CORE}


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(UnknownPolicyError, match="shortest"):
        make_pool(ToolsConfig(policy="longest"))
