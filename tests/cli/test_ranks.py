# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mars.cli.errors import CliError
from mars.cli.ranks import engine_ranks


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 1),
        (["--max-num-seqs", "4"], 1),
        (["--data-parallel-size", "2"], 2),
        (["--data-parallel-size=4"], 4),
        (["--data_parallel_size=4"], 4),
        (["-dp", "3", "--max-num-seqs", "2"], 3),
        (["--data-parallel-size-local", "8"], 1),
    ],
)
def test_ranks_follow_vllms_flag(flags: list[str], expected: int) -> None:
    assert engine_ranks(flags, 1) == expected


def test_what_is_configured_holds_where_no_flag_speaks() -> None:
    assert engine_ranks(["--max-num-seqs", "4"], 2) == 2
    assert engine_ranks(["--data-parallel-size", "2"], 2) == 2


def test_two_answers_are_refused() -> None:
    with pytest.raises(CliError, match=r"engine_ranks is 3, but vLLM is to start 2 ranks"):
        engine_ranks(["--data-parallel-size", "2"], 3)


@pytest.mark.parametrize("flags", [["-dp"], ["-dp", "x"], ["--data-parallel-size=0"]])
def test_what_is_no_number_is_refused(flags: list[str]) -> None:
    with pytest.raises(CliError, match="is no number of ranks"):
        engine_ranks(flags, 1)
