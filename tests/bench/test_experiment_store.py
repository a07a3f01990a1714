# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from mars.bench.experiment_store import CELLS, CellRecord, Store, StoreError, still_wanted


def record(key: str, *, seed: int = 1, error: str | None = None) -> CellRecord:
    return CellRecord(
        key=key,
        machine="m",
        rate_per_s=0.1,
        contender="fcfs",
        cap=None,
        seed=seed,
        policy="fcfs",
        admission="none",
        tool_policy="fifo",
        error=error,
    )


def test_a_line_cut_short_by_a_crash_is_dropped_and_overwritten(tmp_path: Path):
    store = Store(tmp_path)
    with store.locked():
        store.append(record("a"))
        store.append(record("b"))
    path = tmp_path / CELLS
    path.write_bytes(path.read_bytes()[:-9])
    assert [r.key for r in store.read()] == ["a"]
    with store.locked():
        store.rewrite(store.read(), ["a"])
        store.append(record("c"))
    assert [r.key for r in store.read()] == ["a", "c"]


def test_cells_end_in_the_plan_s_order_whoever_was_first(tmp_path: Path):
    store = Store(tmp_path)
    with store.locked():
        for key in ("c", "x", "a", "b"):
            store.append(record(key))
        store.rewrite(store.read(), ["a", "b", "c"])
    assert [r.key for r in store.read()] == ["a", "b", "c", "x"]
    assert [p.name for p in tmp_path.iterdir()] == [CELLS]


def test_a_damaged_line_is_named(tmp_path: Path):
    (tmp_path / CELLS).write_bytes(b'{"key": 1}\n')
    with pytest.raises(StoreError, match=r"line 1: .*; remove the line"):
        Store(tmp_path).read()


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path):
    refused = pytest.raises(StoreError, match="another run is writing here")
    with Store(tmp_path).locked(), refused, Store(tmp_path).locked():
        pytest.fail("both hold the folder")
    with Store(tmp_path).locked():
        pass


def test_kept_are_cells_of_the_plan_and_of_further_seeds():
    old = [record("plan"), record("stale"), record("more", seed=2), record("stuck", error="!")]
    kept = still_wanted(old, ["plan", "stuck", "new"], [1])
    assert set(kept) == {"plan", "more"}


def test_a_folder_that_is_none_says_what_to_do(tmp_path: Path):
    with pytest.raises(StoreError, match=r"experiment.json.*mars experiment run"):
        Store(tmp_path / "nothing").about()
