# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from mars.bench.metrics import summarise
from mars.bench.result import (
    Result,
    ResultError,
    RunTotals,
    SessionRecord,
    TurnRecord,
    encode_result,
    read_result,
    write_result,
)


def _result(sct_s: float = 12.5) -> Result:
    sessions = [
        SessionRecord(
            session_id="s1",
            arrival_s=0.0,
            sct_s=sct_s,
            ideal_s=5.0,
            turns=[
                TurnRecord(turn_index=0, sent_s=0.1, prompt_tokens=9, output_tokens=2, ttft_s=0.3)
            ],
        ),
        SessionRecord(session_id="s2", arrival_s=1.0, sct_s=None, error="engine gone"),
    ]
    totals = RunTotals(duration_s=20.0, gpu_busy=0.5)
    return Result(config={"seed": 1}, summary=summarise(sessions, totals), sessions=sessions)


def test_a_written_result_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    write_result(path, _result())
    assert read_result(path) == _result()


def test_same_result_same_bytes_and_one_session_a_line() -> None:
    raw = encode_result(_result())
    assert raw == encode_result(_result())
    assert sum(b'"session_id"' in line for line in raw.splitlines()) == 2


def test_noise_below_a_microsecond_does_not_change_the_bytes() -> None:
    assert encode_result(_result(12.5)) == encode_result(_result(12.5 + 1e-9))


def test_a_result_without_sessions_is_valid(tmp_path: Path) -> None:
    result = Result(summary=summarise([], RunTotals(duration_s=0.0)), sessions=[])
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result


def test_not_a_number_is_refused_when_writing() -> None:
    with pytest.raises(ValueError, match="use null"):
        encode_result(_result(float("nan")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a mars.result/1 file"),
        ('{"summary": {}, "sessions": []}', "sessions"),
        ('{"schema": 3}', "schema"),
    ],
)
def test_a_bad_file_is_named_with_its_cause(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=says) as caught:
        read_result(path)
    assert "bad.json" in str(caught.value)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(encode_result(_result()).replace(b"mars.result/1", b"mars.result/9"))
    with pytest.raises(ResultError, match=r"mars\.result/9"):
        read_result(path)
