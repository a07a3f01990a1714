# SPDX-License-Identifier: Apache-2.0
"""`mars bench agents`: real agents, unmodified, against MARS."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from rich.console import Console

from mars.cli.errors import CliError

DEFAULT_OUT = Path("results/agents")


def agents(
    *,
    out: Path = DEFAULT_OUT,
    clients: str = "",
    hold_s: float = 30.0,
    at_once: int = 4,
    restarts: bool = True,
    install: bool = True,
    port: int = 0,
) -> None:
    """Install real agents, run each against MARS, and write the compatibility table.

    Each one runs a task of several turns on the emulated accelerator: once with its first
    request held, and (in between) with the engine killed and started anew.

    Parameters
    ----------
    out
        Folder for `agents.md`, `agents.json`, and each agent's workspace and log.
    clients
        Which, separated by commas, by the names of their examples; default: all.
    hold_s
        How long the first request of each is held.
    at_once
        Agents that run at the same time.
    restarts
        Kill the engine under them, twice a batch.
    install
        Install what is missing, into `.agents/`; else leave it out.
    port
        Where the gateway listens; 0 takes a free port.
    """
    from mars.bench.agents.clients import CLIENTS, install_all
    from mars.bench.agents.trial import Trial

    console = Console()
    names = [name for name in clients.split(",") if name] or list(CLIENTS)
    unknown = [name for name in names if name not in CLIENTS]
    if unknown:
        raise CliError(f"no agent {unknown[0]!r} is known", f"one of: {', '.join(CLIENTS)}")
    chosen = [CLIENTS[name] for name in names]
    missing = (
        install_all(chosen, console.print)
        if install
        else {c.name: "not installed" for c in chosen if not c.is_installed()}
    )
    trial = Trial(
        clients=[client for client in chosen if client.name not in missing],
        out=out,
        hold_s=hold_s,
        at_once=at_once,
        restarts=restarts,
        port=port,
        say=lambda line: console.print(line, highlight=False),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing behind then, too
    asyncio.run(trial.run())
    for name, reason in missing.items():
        console.print(f"left out: {CLIENTS[name].title} ({reason})", style="yellow")
    console.print((out / "agents.md").read_text(encoding="utf-8"), markup=False, soft_wrap=True)
