# SPDX-License-Identifier: Apache-2.0
"""`mars bench`: replay recorded agents in real time, and compare policies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from mars.bench.compare import Run, speed_up_text
from mars.bench.live import comparison
from mars.bench.result import read_result
from mars.cli.bench_agents import agents
from mars.cli.bench_openhands import openhands
from mars.cli.scenario_flags import NO_FLAGS, ScenarioFlags

DEFAULT_SCENARIO = Path("scenarios/demo.toml")
DEFAULT_OUT = Path("results/demo")

app = App(
    name="bench",
    help="Replay recorded agents in real time, and compare policies.",
    help_epilogue="""**Examples**

```sh
mars bench demo                                  # what `make demo` does
mars bench demo --sessions 24 --policies fcfs,mars
mars bench replay public:swe-agent --url http://127.0.0.1:8000 --json run.json
mars bench openhands --policies fcfs,mars    # real conversations, real tools
mars bench agents --clients openhands_agent,codex  # real agents, unmodified
mars bench compare results/demo/fcfs/result.json results/demo/mars/result.json
```
""",
)

app.command(agents)
app.command(openhands)


@app.command
def demo(
    scenario: Path = DEFAULT_SCENARIO,
    *,
    out: Path = DEFAULT_OUT,
    port: int = 0,
    flags: ScenarioFlags = NO_FLAGS,
) -> None:
    """Run one scenario under several policies on the emulated accelerator, and compare.

    Parameters
    ----------
    scenario
        The scenario file; the flags below replace single values of it.
    out
        Folder for the report, and one folder per policy with its result, events and logs.
    port
        Where the gateway listens; 0 takes a free port.
    """
    from mars.bench.demo import run_all

    chosen = flags.read(scenario, DEFAULT_SCENARIO)
    asyncio.run(run_all(chosen, out, port=port, console=Console()))


@app.command
def replay(
    trace: str,
    /,
    *,
    url: str,
    model: str | None = None,
    sessions: int | None = None,
    tool_slots: int | None = None,
    tool_policy: str = "fifo",
    time_scale: float = 1.0,
    scripted: bool = True,
    machine: str | None = None,
    json: Path | None = None,
) -> None:
    """Replay a trace against a server that already runs, and measure what its clients see.

    Sessions are closed loops: a turn is sent when the one before it and its tools are done.
    Recorded tools run here, as processes that use the recorded CPU seconds and memory.

    Parameters
    ----------
    trace
        A `mars.trace/1` file, or `public:NAME`.
    url
        Base URL of the gateway or of a bare engine, without `/v1`.
    model
        Model to ask for; default: the first the server offers.
    sessions
        Only so many, the first ones.
    tool_slots
        Tool calls that run at once; default: one per core.
    tool_policy
        Order of the tool queue.
    time_scale
        Arrivals, tools and waits take this many times longer; so must the engine.
    scripted
        Ask an emulated engine for the recorded replies.
    machine
        Profile to reckon ideal times and slowdowns with.
    json
        Write the whole result (`mars.result/1`) to this file.
    """
    from mars.cli.replay import ReplayRequest, run_replay

    run_replay(
        ReplayRequest(
            trace=trace,
            url=url.rstrip("/").removesuffix("/v1"),
            model=model,
            num_sessions=sessions,
            tool_slots=tool_slots,
            tool_policy=tool_policy,
            time_scale=time_scale,
            is_scripted=scripted,
            machine=machine,
            out=json,
        )
    )


@app.command
def compare(
    *results: Annotated[Path, Parameter(required=True)],
) -> None:
    """Show results side by side; the first is what the others are compared with.

    Parameters
    ----------
    results
        Files of `mars.result/1`, from `mars bench` or `mars sim`.
    """
    labels = _labels(results)
    runs = [Run(label, read_result(path)) for label, path in zip(labels, results, strict=True)]
    console = Console()
    console.print(comparison(runs))
    for run in runs[1:]:
        console.print(speed_up_text(run, runs[0]), style="bold", highlight=False)


def _labels(paths: tuple[Path, ...]) -> list[str]:
    """File names, or their folders' where the names are all alike."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    folders = [path.resolve().parent.name for path in paths]
    return folders if len(set(folders)) == len(folders) else [str(path) for path in paths]
