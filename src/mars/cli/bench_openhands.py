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
from mars.cli.scenario_flags import NO_FLAGS, ScenarioFlags

DEFAULT_SCENARIO = Path("scenarios/openhands.toml")
DEFAULT_OUT = Path("results/openhands")


def openhands(
    scenario: Path = DEFAULT_SCENARIO,
    *,
    tasks: Path | None = None,
    url: str | None = None,
    out: Path = DEFAULT_OUT,
    processes: int = 2,
    limit_s: float = 900.0,
    port: int = 0,
    flags: ScenarioFlags = NO_FLAGS,
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
    processes
        OpenHands processes that share the tasks (250 MiB each).
    limit_s
        Longest real time of one policy.
    port
        Where the gateway listens; 0 takes a free port.
    """
    from mars.bench.agents.clients import CLIENTS, install_all
    from mars.bench.openhands.run import Deployment
    from mars.bench.openhands.tasks import read_tasks
    from mars.bench.runner import Experiment

    chosen = flags.read(scenario, DEFAULT_SCENARIO, time_scale=1.0 if url else None)
    console = Console()
    client = CLIENTS["openhands_agent"]
    if missing := install_all([client], console.print):
        raise CliError(f"OpenHands is missing: {missing[client.name]}", "check the package index")
    experiment = Experiment.prepare(chosen)
    if tasks is not None:
        rate = chosen.workload.arrival_rate_per_s
        found = read_tasks(tasks, flags.sessions, rate, chosen.seed)
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
