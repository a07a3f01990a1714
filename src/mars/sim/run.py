# SPDX-License-Identifier: Apache-2.0
"""One experiment in virtual time: trace x policies x machine -> ``mars.result/1``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mars.bench.ideal import ideal_time_s
from mars.bench.metrics import summarise
from mars.bench.result import Result, RunTotals, SessionRecord
from mars.core.copies import HostMemory
from mars.core.coscheduler import CoScheduler
from mars.core.cost import CostModel
from mars.core.events import Event
from mars.core.held import RetentionLimits
from mars.core.policy import admission_policies, scheduling_policies, tool_policies
from mars.core.reload import TieredCost
from mars.core.retention import PrefillCost
from mars.profiles import load_profile
from mars.sim.board import LoadBoard
from mars.sim.engine import Engine, EngineShape
from mars.sim.host import Host
from mars.sim.loop import Driver, EngineModel, EventLoop
from mars.sim.policy_engine import PolicyEngine
from mars.sim.record import Recorder
from mars.sim.samples import Sampler
from mars.sim.sessions import Sessions
from mars.traces.schema import TraceSession

PIPELINE_DEPTH = 2
"""Steps in flight with async scheduling, as in vLLM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """What is run, and on which machine. ``None``: the profile's value.

    Attributes:
        policy: scheduling policy in the engine (name, ``name:ARG`` or dotted path).
        admission: admission policy of the control plane.
        tool_policy: order of the tool queue.
        machine: cost profile, by name or file.
        num_cpus: cores that tools may use.
        tool_slots: tools that run at once; None: one per core.
        kv_tokens: KV pool.
        host_kv_tokens: KV that host memory takes, as vLLM's native offloading; 0: none.
        is_async: plan a step while the one before still runs, vLLM's default on GPUs.
        control_interval_s: between two moves of the admission window.
        retention: hard bounds on held KV.
        seed: goes into the result; the simulator itself draws no random numbers.
        keeps_turns: whether the result lists every turn.
    """

    policy: str = "fcfs"
    policy_options: dict[str, Any] = field(default_factory=dict[str, Any])
    admission: str = "none"
    admission_options: dict[str, Any] = field(default_factory=dict[str, Any])
    tool_policy: str = "fifo"
    tool_policy_options: dict[str, Any] = field(default_factory=dict[str, Any])
    machine: str = "h100-80gb-qwen3-coder-30b-a3b"
    num_cpus: int = 8
    tool_slots: int | None = None
    kv_tokens: int | None = None
    host_kv_tokens: int = 0
    block_size: int = 16
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    watermark: float = 0.0
    is_async: bool = True
    control_interval_s: float = 0.2
    retention: RetentionLimits = field(default_factory=RetentionLimits)
    seed: int = 0
    keeps_turns: bool = True


@dataclass(frozen=True, slots=True)
class Machine:
    """The engine's limits and step times, from a profile and the config's overrides."""

    shape: EngineShape
    cost: CostModel
    host: HostMemory | None = None

    @property
    def prices(self) -> PrefillCost:
        """What policies are offered: the cost of prefill, and of reloads where there are some."""
        if self.host is None:
            return self.cost
        return TieredCost(self.cost, self.host, self.shape.block_size)

    @classmethod
    def of(cls, config: SimConfig) -> Machine:
        """Load the profile.

        Raises:
            ProfileError: no such profile.
            ValueError: a pool too small to hold anything.
        """
        profile = load_profile(config.machine)
        kv_tokens = config.kv_tokens or profile.kv_tokens
        num_blocks = kv_tokens // config.block_size
        if num_blocks < 2:
            raise ValueError(
                f"kv_tokens = {kv_tokens}: must hold two blocks of the engine at least"
            )
        shape = EngineShape(
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_batched_tokens=config.max_num_batched_tokens or profile.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs or profile.max_num_seqs,
            watermark=config.watermark,
            is_async=config.is_async,
        )
        host = None
        if config.host_kv_tokens:
            size = profile.kv_bytes_per_token * config.block_size
            num_blocks = config.host_kv_tokens // config.block_size
            host = HostMemory(profile.host_link, size, num_blocks)
        return cls(shape, profile.cost, host)


MakeEngine = Callable[[SimConfig, Machine, Callable[[Event], None]], EngineModel]


def simulated_engine(config: SimConfig, machine: Machine, emit: Callable[[Event], None]) -> Engine:
    """The engine model, with the policy that ``config`` names."""
    policy = scheduling_policies.create(
        config.policy, {"cost": machine.prices}, **config.policy_options
    )
    co = CoScheduler(
        policy,
        num_blocks=machine.shape.num_usable_blocks,
        block_size=machine.shape.block_size,
        emit=emit,
        limits=config.retention,
    )
    kind = Engine if policy.keeps_engine_order else PolicyEngine
    return kind(co, machine.shape, machine.cost, machine.host)


def simulate(
    sessions: Iterable[TraceSession],
    config: SimConfig,
    *,
    sink: Callable[[Event], None] | None = None,
    make_engine: MakeEngine = simulated_engine,
) -> Result:
    """Run one experiment; the same inputs give the same result, to the byte.

    Args:
        sessions: the trace; sessions without turns are left out.
        config: policies and machine.
        sink: receives every event (``mars.core.events``), with a load sample a second.
        make_engine: the engine model; vLLM's own scheduler in the agreement tests.

    Raises:
        UnknownPolicyError: no such policy, or an option that it lacks.
        ProfileError: no such profile.
        StuckError: the policy never serves some turn.
    """
    run = _Run(config, sink, make_engine)
    for session in sessions:
        if session.turns:
            run.expect(session)
    return run.result()


class _Run:
    """The parts of one experiment, wired."""

    def __init__(
        self, config: SimConfig, sink: Callable[[Event], None] | None, make_engine: MakeEngine
    ) -> None:
        machine = Machine.of(config)
        self.config = config
        self.machine = machine
        self.events = EventLoop()
        self.recorder = Recorder(sink, keeps_turns=config.keeps_turns)
        emit = self.recorder.emit
        self.engine = make_engine(config, machine, emit)
        self.board = LoadBoard(self.engine.load, lambda: len(self.sessions.held))
        offers = {"cost": machine.prices}
        self.host = Host(
            self.events,
            tool_policies.create(config.tool_policy, offers, **config.tool_policy_options),
            num_cores=config.num_cpus,
            num_slots=config.tool_slots or config.num_cpus,
            emit=emit,
            load=self.board.load,
        )
        self.board.watch(self.host)
        self.sessions = Sessions(
            self.events,
            self.engine,
            self.host,
            admission_policies.create(config.admission, offers, **config.admission_options),
            load=self.board.load,
            emit=emit,
            ended=self._ended,
            interval_s=config.control_interval_s,
            max_tokens=machine.shape.num_usable_blocks * machine.shape.block_size,
        )
        depth = PIPELINE_DEPTH if machine.shape.is_async else 1
        self.driver = Driver(self.events, self.engine, self.sessions.finished, depth)
        self._last_end = 0.0
        if sink is not None and isinstance(self.engine, Engine):
            is_alive = self.sessions.is_alive
            Sampler(self.events, self.engine, self.host, self.driver, emit, is_alive)

    def expect(self, session: TraceSession) -> None:
        ideal_s = ideal_time_s(
            session,
            self.machine.cost,
            block_size=self.machine.shape.block_size,
            chunk_tokens=self.machine.shape.max_num_batched_tokens,
        )
        self.recorder.expect(session, ideal_s)
        self.sessions.expect(session)

    def result(self) -> Result:
        self.driver.run()
        self.host.settle()
        records = list(self.recorder.sessions.values())
        return Result(
            config=self._config(),
            summary=summarise(records, self._totals(records)),
            sessions=records,
        )

    def _config(self) -> dict[str, Any]:
        """The config with the machine's values in place of what was left to it."""
        shape = self.machine.shape
        return dataclasses.asdict(self.config) | {
            "tool_slots": self.host.num_slots,
            "kv_tokens": self.config.kv_tokens or shape.num_blocks * shape.block_size,
            "max_num_seqs": shape.max_num_seqs,
            "max_num_batched_tokens": shape.max_num_batched_tokens,
        }

    def _ended(self, session_id: str, error: str | None) -> None:
        record = self.recorder.sessions[session_id]
        now = self._last_end = self.events.now
        record.computed_tokens = self.engine.num_computed_tokens(session_id)
        if error is not None:
            record.error = error
            return
        record.sct_s = now - record.arrival_s
        parts = record.held_s + record.queue_s + record.prefill_s + record.decode_s
        record.gap_s = max(0.0, record.sct_s - parts - record.tool_wait_s - record.tool_s)

    def _totals(self, records: list[SessionRecord]) -> RunTotals:
        start = min((r.arrival_s for r in records), default=0.0)
        duration_s = max(0.0, self._last_end - start)
        outside_s = self.events.now - duration_s  # before the first arrival, after the last end
        slot_s = self.host.totals.offered_slot_s - outside_s * self.host.num_slots
        load = self.engine.load(self._last_end)
        return RunTotals(
            duration_s=duration_s,
            gpu_busy=self.driver.busy_s / duration_s if duration_s else None,
            cpu_busy=self.host.totals.busy_slot_s / slot_s if slot_s > 0.0 else None,
            computed_tokens=load.computed_tokens,
            recomputed_tokens=load.recomputed_tokens,
            preemptions=load.preemptions,
        )
