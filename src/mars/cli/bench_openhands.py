# SPDX-License-Identifier: Apache-2.0
"""`mars bench openhands`: the deployment experiment."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mars.cli.errors import CliError
from mars.cli.ports import free_port

DEFAULT_SCENARIO = Path("scenarios/openhands.toml")
DEFAULT_OUT = Path("results/openhands")


def openhands(
    scenario: Path = DEFAULT_SCENARIO,
    *,
    tasks: Path | None = None,
    url: str | None = None,
    out: Path = DEFAULT_OUT,
    sessions: int | None = None,
    turns: int | None = None,
    time_scale: float | None = None,
    kv_tokens: int | None = None,
    tool_slots: int | None = None,
    policies: str = "",
    seed: int | None = None,
    processes: int = 2,
    limit_s: float = 900.0,
    port: int = 0,
) -> None:
    """Run OpenHands tasks under several policies on the emulated accelerator, and compare.

    The conversations are OpenHands' own, unmodified; their replies are scripted after
    recorded agents, and every terminal and editor action really happens.

    Parameters
    ----------
    scenario
        The scenario file; the flags below replace single values of it.
    tasks
        `mas_task_v1` file: its tasks instead of the scenario's recorded sessions.
    url
        A MARS server that already runs, instead of an emulated one for each policy; its
        `MARS_TOOLS`, if set, gives the slots.
    out
        Folder for the report, and one folder per policy.
    sessions
        How many tasks.
    turns
        Most turns of a task.
    time_scale
        Dilation of everything timed: 2 halves the load on a slow machine.
    kv_tokens
        KV pool of the emulated accelerator.
    tool_slots
        Tool calls that run at once.
    policies
        Which, separated by commas: labels of the scenario, or POLICY, or POLICY@ADMISSION.
    seed
        Of the choice of sessions and of their arrivals.
    processes
        OpenHands processes that share the tasks (250 MiB each).
    limit_s
        Longest real time of one policy.
    port
        Where the gateway listens; 0 takes a free port.
    """
    from mars.bench.agents.clients import CLIENTS, install_all
    from mars.bench.demo import override
    from mars.bench.openhands.run import Deployment
    from mars.bench.openhands.tasks import read_tasks
    from mars.bench.runner import Experiment
    from mars.bench.scenario import load_scenario

    if not scenario.exists():
        raise CliError(
            f"there is no scenario {scenario}",
            f"run it where {DEFAULT_SCENARIO} is (the repository), or name a file",
        )
    console = Console()
    client = CLIENTS["openhands_agent"]
    if missing := install_all([client], console.print):
        raise CliError(f"OpenHands is missing: {missing[client.name]}", "check the package index")
    chosen = override(
        load_scenario(scenario),
        workload={"sessions": sessions, "turns": turns},
        machine={
            "time_scale": 1.0 if url and time_scale is None else time_scale,
            "kv_tokens": kv_tokens,
            "tool_slots": tool_slots,
        },
        policies=[name for name in policies.split(",") if name],
        seed=seed,
    )
    experiment = Experiment.prepare(chosen)
    if tasks is not None:
        rate = chosen.workload.arrival_rate_per_s
        found = read_tasks(tasks, sessions, rate, chosen.seed)
        experiment = replace(experiment, sessions=found)
    deployment = Deployment(
        experiment,
        out,
        url=url and url.rstrip("/").removesuffix("/v1"),
        num_processes=processes,
        limit_s=limit_s,
        port=port or free_port(),
        console=console,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing behind then, too
    asyncio.run(deployment.run())
