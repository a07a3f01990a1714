# SPDX-License-Identifier: Apache-2.0
"""Run the cells of an experiment in virtual time: over processes, resumable, interruptible.

A cell's key covers its config, its workload and the code that decides its outcome, so that a
finished cell is not run again, and one of an older version is. Only this process writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec

from mars.bench.bound import lower_bound
from mars.bench.bound_work import Box
from mars.bench.experiment_plan import Cell, Experiment, Load, choose_sessions, disguise
from mars.bench.experiment_store import CellRecord
from mars.bench.oracle import future_of
from mars.bench.result import write_result
from mars.core.policy import Registry, admission_policies, scheduling_policies, tool_policies
from mars.sim.loop import StuckError
from mars.sim.run import Machine, SimConfig, simulate
from mars.traces.io import PUBLIC_PREFIX
from mars.traces.schema import TraceSession, encode_session

_SHARED_CODE = (
    "core/*.py",
    "sim/*.py",
    "profiles/**/*.py",
    "profiles/**/*.toml",
    "traces/*.py",
    "traces/*.json",
    "traces/public/*.xz",
    "bench/experiment_plan.py",
    "bench/bound.py",
    "bench/bound_work.py",
    "bench/ideal.py",
    "bench/metrics.py",
    "bench/oracle.py",
)
"""What every cell's outcome depends on, under the package; its policies' files come to it."""


class CellError(RuntimeError):
    """A cell failed for a reason that repeating it would not cure; names the cell."""


@cache
def code_fingerprint() -> str:
    """Hash of the code that all cells share."""
    import mars

    package = Path(mars.__file__).parent
    digest = hashlib.sha256()
    for path in sorted({p for pattern in _SHARED_CODE for p in package.glob(pattern)}):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _policy_code(registry: Registry, spec: str, options: dict[str, Any]) -> str:
    """Hash of the files that define a policy; a wrong name or option is found out here."""
    made = type(registry.create(spec, **options))
    bases = [cls for cls in made.__mro__ if cls.__module__ != "builtins"]
    return " ".join(_file_hash(inspect.getsourcefile(cls)) for cls in bases)


@cache
def _file_hash(path: str | None) -> str:
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cell_key(experiment: Experiment, cell: Cell) -> str:
    """What identifies a cell's outcome: everything that decides it.

    Raises:
        UnknownPolicyError: no such policy, or an option that it lacks.
        OSError: a trace file cannot be read.
    """
    config = cell.config
    future: dict[str, Any] = {"future": {}} if cell.knows_trace else {}
    load = msgspec.to_builtins(experiment.workload)
    del load["rates_per_s"], load["low_rate_per_s"]
    decides = {
        "code": code_fingerprint(),
        "policies": [
            _policy_code(scheduling_policies, config.policy, config.policy_options | future),
            _policy_code(admission_policies, config.admission, config.admission_options),
            _policy_code(tool_policies, config.tool_policy, config.tool_policy_options),
        ],
        "workload": load,
        "traces": [_trace_hash(part.trace) for part in experiment.workload.parts],
        "rate_per_s": cell.rate_per_s,
        "config": dataclasses.asdict(config),
        "tool_names": cell.tool_names,
        "knows_trace": cell.knows_trace,
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _trace_hash(trace: str | None) -> str:
    return "" if trace is None or trace.startswith(PUBLIC_PREFIX) else _file_hash(trace)


def run_cell(load: Load, cell: Cell, key: str, keep_in: Path | None = None) -> CellRecord:
    """Simulate one cell.

    Args:
        load: the workload.
        cell: what to run.
        key: its key.
        keep_in: folder for the whole result, sessions and turns included.

    Raises:
        CellError: the policies or the workload cannot be run.
    """
    record = CellRecord(
        key=key,
        machine=cell.machine,
        rate_per_s=cell.rate_per_s,
        contender=cell.contender,
        cap=cell.cap,
        seed=cell.seed,
        policy=cell.config.policy,
        admission=cell.config.admission,
        tool_policy=cell.config.tool_policy,
    )
    encoded = _encoded(load)
    sessions, record.sessions_hash = _sessions(encoded, cell.seed, cell.rate_per_s)
    try:
        if not cell.config.host_kv_tokens:  # with host memory the bound would not be one
            box = box_of(cell.config)
            record.lower_bound_s = _bound_s(encoded, cell.seed, cell.rate_per_s, box)
        shown = disguise(sessions, cell.tool_names, cell.seed)
        result = simulate(shown, _told(cell, sessions))
    except StuckError as error:
        record.error = str(error)
        return record
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CellError(f"{cell}: {type(error).__name__}: {error}") from error
    record.summary = result.summary
    if keep_in is not None:
        write_result(keep_in / f"{key}.json", result)
    return record


def _encoded(load: Load) -> bytes:
    return msgspec.json.encode(load)


@lru_cache(maxsize=4)
def _sessions(load: bytes, seed: int, rate_per_s: float) -> tuple[list[TraceSession], str]:
    chosen = choose_sessions(msgspec.json.decode(load, type=Load), seed, rate_per_s)
    digest = hashlib.sha256()
    for session in chosen:
        digest.update(encode_session(session) + b"\n")
    return chosen, digest.hexdigest()[:24]


def _told(cell: Cell, sessions: list[TraceSession]) -> SimConfig:
    """The cell's config, with the future for whoever is told it."""
    config = cell.config
    if not cell.knows_trace:
        return config
    future = future_of(sessions, Machine.of(config).cost)
    return dataclasses.replace(config, policy_options=config.policy_options | {"future": future})


def box_of(config: SimConfig) -> Box:
    """The machine of a config, as the bound sees it."""
    machine = Machine.of(config)
    shape = machine.shape
    return Box(
        cost=machine.cost,
        num_cores=config.num_cpus,
        pool_tokens=shape.num_usable_blocks * shape.block_size,
        block_size=shape.block_size,
        chunk_tokens=shape.max_num_batched_tokens,
        num_seqs=shape.max_num_seqs,
    )


@lru_cache(maxsize=8)
def _bound_s(load: bytes, seed: int, rate_per_s: float, box: Box) -> float | None:
    """Of a point and seed, whoever runs there."""
    found = lower_bound(_sessions(load, seed, rate_per_s)[0], box)
    return None if found is None else found.mean_s


def run_cells(
    experiment: Experiment,
    wanted: Sequence[tuple[str, Cell]],
    *,
    num_workers: int,
    keep_in: Path | None = None,
) -> Iterator[CellRecord]:
    """Yield the records of these cells as they are done, in no order.

    Closing the iterator, or Ctrl-C, ends the worker processes at once.

    Args:
        experiment: where the cells are from.
        wanted: (key, cell).
        num_workers: processes; 1 runs all in this one.
        keep_in: folder for whole results.

    Raises:
        CellError: a cell cannot be run.
    """
    load = experiment.workload
    if num_workers == 1:
        for key, cell in wanted:
            yield run_cell(load, cell, key, keep_in)
        return
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    try:
        futures: list[Future[CellRecord]] = [
            executor.submit(run_cell, load, cell, key, keep_in) for key, cell in wanted
        ]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise CellError(
            "a worker process died, most likely for want of memory; lower --workers. "
            "The same command goes on where this one stopped."
        ) from error
    finally:
        # The executor itself waits for them: two waiting for one process lose its status.
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        executor.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent decides what becomes of workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Every policy now: files that change while the experiment runs must not mix versions.
    for registry in (scheduling_policies, admission_policies, tool_policies):
        registry.names()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
