# SPDX-License-Identifier: Apache-2.0
"""The folder of an experiment: one line per finished cell, and what was asked.

``cells.jsonl`` is appended to while running, each line whole and flushed, and put in the
plan's order at the end by an atomic replacement; a line cut short by a crash is dropped at
the next start. ``experiment.json`` holds the experiment, its seeds and its command.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from mars.bench.experiment_plan import Experiment
from mars.bench.result import Summary

SCHEMA = "mars.experiment/1"
CELLS = "cells.jsonl"
ABOUT = "experiment.json"
DECIMALS = 6


class StoreError(ValueError):
    """A results folder cannot be used; the message names the file and the fix."""


class CellRecord(msgspec.Struct, kw_only=True):
    """What one cell gave: a ``mars.result/1`` summary, or why there is none."""

    key: str
    machine: str
    rate_per_s: float
    contender: str
    cap: int | None
    seed: int
    policy: str
    admission: str
    tool_policy: str
    sessions_hash: str = ""
    """Equal for all contenders of a point and seed."""
    lower_bound_s: float | None = None
    """Mean completion time that no schedule of these sessions can beat."""
    summary: Summary | None = None
    error: str | None = None
    """Set when the policies never served some turn."""


class About(msgspec.Struct, kw_only=True):
    """What a folder's cells belong to."""

    schema: str = SCHEMA
    experiment: Experiment
    seeds: list[int]
    command: list[str]
    num_cells: int
    code: str
    """Hash of the code the cells were made with."""
    knees: dict[str, list[float]] = {}
    """Loads run in search of the knee, by machine."""


class Store:
    """One results folder; a single process writes at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._out: IO[bytes] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            StoreError: another run holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise StoreError(
                f"{self.folder}: another run is writing here; wait for it, or give --out"
            ) from None
        finally:
            self.close()
            os.close(held)

    def begin(self, about: About) -> None:
        """Say what the cells belong to."""
        tree = msgspec.to_builtins(about)
        self._replace(ABOUT, (json.dumps(tree, indent=1) + "\n").encode())

    def about(self) -> About:
        """What the folder holds.

        Raises:
            StoreError: it holds no experiment, or one of another version.
        """
        path = self.folder / ABOUT
        try:
            return msgspec.json.decode(path.read_bytes(), type=About)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be read: {error.strerror}; "
                "make it with `mars experiment run scenarios/NAME.toml`"
            ) from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"{path}: not a {SCHEMA} folder: {error}") from error

    def read(self) -> list[CellRecord]:
        """All finished cells; a last line cut short is left out.

        Raises:
            StoreError: a line is wrong.
        """
        path = self.folder / CELLS
        if not path.exists():
            return []
        found: list[CellRecord] = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                found.append(msgspec.json.decode(line, type=CellRecord))
            except msgspec.MsgspecError as error:
                raise StoreError(f"{path}: line {number}: {error}; remove the line") from error
        return found

    def append(self, record: CellRecord) -> None:
        """Add a finished cell; on disk when this returns."""
        if self._out is None:
            self._out = (self.folder / CELLS).open("ab")
        self._out.write(encode(record))
        self._out.flush()
        os.fsync(self._out.fileno())

    def rewrite(self, records: Iterable[CellRecord], order: Sequence[str]) -> None:
        """Replace all cells, those of the plan in its order and first."""
        self.close()
        place = {key: i for i, key in enumerate(order)}
        ordered = sorted(records, key=lambda r: (place.get(r.key, len(place)), r.seed, r.key))
        self._replace(CELLS, b"".join(encode(record) for record in ordered))

    def close(self) -> None:
        """Close the file of cells."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def _replace(self, name: str, content: bytes) -> None:
        partial = self.folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(self.folder / name)


def still_wanted(
    records: Iterable[CellRecord],
    keys: Iterable[str],
    seeds: Iterable[int],
    loads: Iterable[float] | None = None,
) -> dict[str, CellRecord]:
    """Finished cells to keep: those of the plan, and those of further seeds.

    A cell of a planned seed that is not in the plan is of an older version of the code or of
    the experiment; one that got stuck is tried again.

    Args:
        records: what there is.
        keys: cells of the plan.
        seeds: the plan's.
        loads: the plan's, where further ones may follow: cells at other loads are kept.
    """
    planned, covered = set(keys), set(seeds)
    known_loads = None if loads is None else set(loads)

    def is_wanted(record: CellRecord) -> bool:
        is_further = known_loads is not None and record.rate_per_s not in known_loads
        return record.key in planned or record.seed not in covered or is_further

    return {r.key: r for r in records if r.error is None and is_wanted(r)}


def encode(record: CellRecord) -> bytes:
    """One line; the same record gives the same bytes."""
    tree = _rounded(msgspec.to_builtins(record))
    return (json.dumps(tree, allow_nan=False) + "\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
