# SPDX-License-Identifier: Apache-2.0
"""`mars trace`: convert, describe, cut and make traces of agent sessions."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from mars.cli.errors import CliError
from mars.traces.convert import convert as convert_trace
from mars.traces.describe import compare, distance_table, to_json
from mars.traces.describe import describe as describe_sessions
from mars.traces.importers import FORMATS, detect
from mars.traces.io import read_trace, write_trace
from mars.traces.sample import sample as sample_sessions
from mars.traces.synth import MAX_PROMPT_TOKENS
from mars.traces.synth import synth as synth_sessions

app = App(
    name="trace",
    help="""Convert, describe, cut and make traces of agent sessions.

A trace is a file of `mars.trace/1`, one session a line, plain or compressed (.gz, .xz), or
`public:NAME` for one that ships with MARS.
""",
    help_epilogue="""**Examples**

```sh
mars trace describe public:swe-agent
mars trace convert recording.json trace.jsonl.xz
mars trace sample public:claude-code cut.jsonl --n 60 --rate 0.08 --max-gap-s 30
mars trace synth coding.jsonl.xz --n 200 --rate 0.1 --seed 7
```
""",
)


@app.command
def convert(
    source: str,
    target: Path,
    /,
    *,
    form: str | None = None,
    to: str = "mars",
    option: Annotated[tuple[str, ...], Parameter(negative=())] = (),
) -> None:
    """Read a recording in any known form and write it as a trace.

    Forms: mars, weka, thunderagent, mooncake, azure, tracelab, aiperf, mas_task, miniswe.

    Parameters
    ----------
    source
        The recording.
    target
        File to write; its ending says how to compress.
    form
        Form of the recording; default: found from its first line.
    to
        `mars`, or `mooncake` (keeps lengths and sharing, loses sessions and tools).
    option
        Setting of the form's reader, as in `--option tool_cap_s=60`; may be repeated.
    """
    name = form or detect(source)
    options = _options(name, option)
    num_lines = convert_trace(source, target, form=name, to=to, **options)
    print(f"{target}: {num_lines} lines of {to}, from {name}")


@app.command
def describe(
    source: str,
    /,
    *,
    against: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the statistics one compares workloads by.

    Parameters
    ----------
    source
        The trace.
    against
        A second trace: print how far the two are apart in each statistic instead.
    json
        Print JSON (`mars.describe/1`).
    """
    if against is not None:
        distances = compare(read_trace(source), read_trace(against))
        print(msgspec.json.encode(distances).decode() if json else distance_table(distances))
        return
    description = describe_sessions(read_trace(source))
    print(to_json(description).decode() if json else description.table())


@app.command
def sample(
    source: str,
    target: Path,
    /,
    *,
    n: int | None = None,
    seed: int = 0,
    rate: float | None = None,
    arrivals: str = "poisson",
    max_turns: int | None = None,
    max_gap_s: float | None = None,
    max_tool_s: float | None = None,
    max_prompt_tokens: int | None = None,
    scale_time: float = 1.0,
    scale_tokens: float = 1.0,
) -> None:
    """Draw sessions from a trace, give them arrivals, and bound or scale them.

    Parameters
    ----------
    source
        The trace to draw from.
    target
        File to write.
    n
        Sessions to draw; more than there are gives copies. Default: all.
    seed
        Of the draw and of the arrivals.
    rate
        Sessions per second; default: arrivals stay as recorded.
    arrivals
        `poisson`, `gamma:CV`, `burst:SIZE`, `even` or `together`.
    max_turns
        Cut longer sessions after so many turns.
    max_gap_s
        Bound on one client wait.
    max_tool_s
        Bound on one tool call; its CPU seconds shrink in proportion.
    max_prompt_tokens
        End a session before its first longer prompt.
    scale_time
        Factor on tools and waits.
    scale_tokens
        Factor on all token counts.
    """
    sessions = sample_sessions(
        read_trace(source),
        n,
        seed=seed,
        rate=rate,
        arrivals=arrivals,
        max_turns=max_turns,
        max_gap_s=max_gap_s,
        max_tool_s=max_tool_s,
        max_prompt_tokens=max_prompt_tokens,
        scale_time=scale_time,
        scale_tokens=scale_tokens,
    )
    print(f"{target}: {write_trace(target, sessions)} sessions")


@app.command
def synth(
    target: Path,
    /,
    *,
    n: int = 60,
    seed: int = 0,
    regime: str = "mixed",
    rate: float | None = None,
    arrivals: str = "poisson",
    long_context: float = 0.0,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
) -> None:
    """Make a trace from the distributions fitted to the public recordings.

    Parameters
    ----------
    target
        File to write.
    n
        Sessions.
    seed
        Same seed, same trace.
    regime
        Kind of agents: `light`, `mixed`, `heavy`, `interactive`, or `hybrid`.
    rate
        Sessions per second; default: all arrive at once.
    arrivals
        `poisson`, `gamma:CV`, `burst:SIZE` or `even`.
    long_context
        Share of sessions that begin with a very long prompt, 0 to 1.
    max_prompt_tokens
        Contexts are compacted before they pass this.
    """
    sessions = synth_sessions(
        n,
        seed=seed,
        regime_name=regime,
        rate=rate,
        arrivals=arrivals,
        long_context=long_context,
        max_prompt_tokens=max_prompt_tokens,
    )
    print(f"{target}: {write_trace(target, sessions)} sessions")


def _options(form: str, assignments: tuple[str, ...]) -> dict[str, Any]:
    """Reader settings by name, checked against what the reader takes."""
    if form not in FORMATS:
        return {}
    known = [name for name in inspect.signature(FORMATS[form]).parameters if name != "path"]
    options: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in known:
            raise CliError(
                f"--option {assignment!r}: the reader of {form!r} takes "
                f"{', '.join(known) or 'no options'}",
                "write --option NAME=VALUE",
            )
        try:
            options[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            options[name] = text
    return options
