# SPDX-License-Identifier: Apache-2.0
"""`mars calibrate`: fit a cost profile to a live engine."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import aiohttp
from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from mars.bench.calibrate import Fit, Samples, fit
from mars.bench.calibrate_http import Plan, measure
from mars.bench.calibrate_report import HEADS, draw, profile_text, rows
from mars.cli.errors import CliError
from mars.cli.replay import first_model
from mars.gateway.samplers import TelemetryError, scrape
from mars.profiles import Profile, load_profile

app = App(
    name="calibrate",
    help_epilogue="""**Examples**

```sh
mars calibrate http://127.0.0.1:8000 --machine h100-qwen3-coder-30b --out profile.toml
mars calibrate http://127.0.0.1:8000 --machine h200-gpt-oss-120b --max-batch 64 --plot fit.png
mars sim public:swe-agent --machine ./profile.toml
```

Let nobody else use the engine meanwhile. Takes minutes: most of them for long prompts.
""",
)


@app.default
def calibrate(
    url: str,
    /,
    *,
    machine: str,
    out: Path = Path("profile.toml"),
    model: str | None = None,
    max_tokens: int = 32768,
    max_batch: int = 32,
    plot: Path | None = None,
) -> None:
    """Measure prefill and decode times of an engine over HTTP, and write a profile of them.

    Parameters
    ----------
    url
        Base URL of the engine itself, not of a gateway, without `/v1`.
    machine
        The profile to begin with: its GPU, and its model's shape, are kept.
    out
        Where the profile goes; other commands take its path for a machine.
    model
        Model to ask for; default: the first the server offers.
    max_tokens
        Longest prompt.
    max_batch
        Most sequences at once.
    plot
        Write measured points and fitted curves to this file (.png, .svg).
    """
    for flag, value, least in (("--max-tokens", max_tokens, 4096), ("--max-batch", max_batch, 4)):
        if value < least:
            raise CliError(f"{flag} is {value}", f"give at least {least}: less fits no curve")
    profile = load_profile(machine)
    base = url.rstrip("/").removesuffix("/v1")
    samples, kv_tokens = asyncio.run(_measure(base, model, profile, max_tokens, max_batch))
    found = fit(samples, profile.cost)
    source = f"{base}, {dt.datetime.now(dt.UTC):%Y-%m-%d}, from {profile.name}"
    out.write_text(profile_text(profile, found, kv_tokens, source), encoding="utf-8")
    if plot is not None:
        draw(samples, found).savefig(plot, dpi=110)
    _print(samples, found, out)


async def _measure(
    url: str, model: str | None, profile: Profile, max_tokens: int, max_batch: int
) -> tuple[Samples, int | None]:
    """All samples, and the size of the KV pool where the engine tells it."""
    name = model or await first_model(url)
    kv_tokens = await _pool_tokens(url)
    pool = kv_tokens or profile.kv_tokens
    plan = Plan(
        max_tokens=min(max_tokens, int(0.9 * pool)),
        max_batch=max_batch,
        pool_tokens=pool,
        chunk_tokens=profile.max_num_batched_tokens,
    )
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=plan.num_points)
        return await measure(url, name, plan, lambda: progress.advance(task)), kv_tokens


async def _pool_tokens(url: str) -> int | None:
    async with aiohttp.ClientSession() as http:
        try:
            load = await scrape(http, url, 0.0)
        except TelemetryError:
            return None
    if load.kv_blocks_total is None or load.block_size is None:
        return None
    return load.kv_blocks_total * load.block_size


def _print(samples: Samples, found: Fit, out: Path) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(HEADS[0])
    for head in HEADS[1:]:
        table.add_column(head, justify="right")
    for row in rows(samples, found):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"R2: prefill {found.r2_prefill:.4f}, decode {found.r2_decode:.4f}. "
        f"Way there and back: {1e3 * found.overhead_s:.1f} ms. Profile: {out}",
        highlight=False,
    )
