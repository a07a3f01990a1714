# SPDX-License-Identifier: Apache-2.0
"""`mars sim`: one experiment in virtual time."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.table import Table

from mars.bench.compare import Run, rows
from mars.bench.result import Result, write_result
from mars.cli.errors import CliError
from mars.core.events import Event
from mars.profiles import ProfileError
from mars.sim.run import Machine, SimConfig, simulate
from mars.telemetry.codec import Record
from mars.telemetry.sink import JsonlSink
from mars.traces.io import read_trace

app = App(
    name="sim",
    help_epilogue="""**Examples**

```sh
mars sim public:swe-agent --policy mars --admission mars --machine h100-qwen3-coder-30b
mars sim trace.jsonl.xz --policy fcfs --admission cap:8 --kv-tokens 210000 --cpus 8 \\
    --json result.json
```

The same inputs give the same bytes. `mars trace sample` gives a trace more sessions, or
other arrivals.
""",
)


@app.default
def sim(
    trace: str,
    /,
    *,
    policy: str = "mars",
    admission: str = "mars",
    tool_policy: str = "fifo",
    machine: str = "h100-qwen3-coder-30b",
    cpus: int = 8,
    tool_slots: int | None = None,
    kv_tokens: int | None = None,
    host_kv_tokens: int | None = None,
    seed: int = 0,
    json: Path | None = None,
    events: Path | None = None,
) -> None:
    """Run a trace through the engine, host and control-plane models in virtual time.

    Parameters
    ----------
    trace
        A `mars.trace/1` file, or `public:NAME` for one that ships.
    policy
        Scheduling policy inside the engine: a name, `name:ARG`, or a dotted path.
    admission
        Admission policy in front of it.
    tool_policy
        Order of the tool queue.
    machine
        Cost profile, by name or file: a GPU and a model.
    cpus
        Cores that tools may use.
    tool_slots
        Tool calls that run at once; default: one per core.
    kv_tokens
        KV pool; default: what the machine's memory holds.
    host_kv_tokens
        KV that host memory takes, as with vLLM's --kv-offloading-size; default: none.
    seed
        Goes into the result, for whoever made the trace with it.
    json
        Write the whole result (`mars.result/1`) to this file.
    events
        Write every event to this file, for `mars explain`.
    """
    for flag, value in {
        "--cpus": cpus,
        "--tool-slots": tool_slots,
        "--kv-tokens": kv_tokens,
        "--host-kv-tokens": host_kv_tokens,
    }.items():
        if value is not None and value < 1:
            raise CliError(f"{flag} is {value}", "give at least 1")
    config = SimConfig(
        policy=policy,
        admission=admission,
        tool_policy=tool_policy,
        machine=machine,
        num_cpus=cpus,
        tool_slots=tool_slots,
        kv_tokens=kv_tokens,
        host_kv_tokens=host_kv_tokens or 0,
        seed=seed,
    )
    try:
        Machine.of(config)
    except ProfileError as error:
        raise CliError(f"--machine: {error}") from error
    except ValueError as error:
        raise CliError(str(error), "raise --kv-tokens") from error
    seen: list[Event] = []
    result = simulate(read_trace(trace), config, sink=seen.append if events else None)
    if events is not None:
        _write_events(events, seen)
    if json is not None:
        write_result(json, result)
    _print(f"{policy} / {admission}", result)


def _write_events(path: Path, seen: list[Event]) -> None:
    path.unlink(missing_ok=True)
    sink = JsonlSink(path)
    sink.write(Record(seq, "sim", event) for seq, event in enumerate(seen, start=1))
    sink.close()


def _print(label: str, result: Result) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column(label, justify="right")
    for row in rows([Run(label, result)]):
        table.add_row(row.label, *row.cells)
    Console().print(table)
