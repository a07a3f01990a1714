# SPDX-License-Identifier: Apache-2.0
"""Keep, offload or drop: which is cheapest, by context length and expected absence.

Run: ``python benchmarks/price_curve.py [--machine PROFILE] [--host-kv-tokens N] [--out FILE]``.
Prices in seconds, of a context of C tokens that is asked for again after so long:

* keep: ``C / pool x absence``, the share of the GPU's memory that others lack meanwhile;
* offload: ``reload(C)``, and ``C / host x absence`` where host memory is full as well;
* drop: ``prefill(C)``.

Prints the boundaries as a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mars.bench.plots import STYLE
from mars.core.copies import HostMemory
from mars.core.reload import TieredCost
from mars.core.retention import PriceTable
from mars.profiles import load_profile

BLOCK = 16
COLOURS = ("#009e73", "#56b4e9", "#d55e00")
CHOICES = ("keep on the GPU", "offload to host memory", "drop, compute again")
SHOWN = (1_000, 4_000, 16_000, 32_000, 64_000, 128_000)


def main(argv: list[str] | None = None) -> int:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", default="h100-80gb-qwen3-coder-30b-a3b")
    parser.add_argument("--host-kv-tokens", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path, default=Path("docs/img/price-curve.png"))
    given = parser.parse_args(argv)
    profile = load_profile(given.machine)
    size = profile.kv_bytes_per_token * BLOCK
    host = HostMemory(profile.host_link, size, given.host_kv_tokens // BLOCK)
    prices = PriceTable(TieredCost(profile.cost, host, BLOCK))
    pool, host_tokens = profile.kv_tokens, given.host_kv_tokens
    print("| context | reload | prefill | keep, not offload, below | offload, not drop, below |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for tokens in SHOWN:
        reload_s, prefill_s = prices.reload_s(tokens), prices.prefill_s(tokens)
        keep_s = reload_s / (tokens / pool - tokens / host_tokens)
        drop_s = (prefill_s - reload_s) * host_tokens / tokens
        print(
            f"| {tokens:,} | {1e3 * reload_s:.1f} ms | {1e3 * prefill_s:.0f} ms | "
            f"{keep_s:.2f} s | {drop_s:.0f} s |"
        )
    with mpl.rc_context(STYLE):
        _figure(prices, pool, host_tokens, profile.name).savefig(given.out, dpi=100)
    return 0


def _figure(prices: PriceTable, pool: int, host: int, name: str) -> Figure:
    tokens = np.geomspace(500, pool, 160)
    absence = np.geomspace(0.01, 3600, 160)
    reload_s = np.array([prices.reload_s(int(n)) for n in tokens])
    prefill_s = np.array([prices.prefill_s(int(n)) for n in tokens])
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(tokens, prefill_s, color=COLOURS[2], label="compute again")
    left.plot(tokens, reload_s, color=COLOURS[1], label="copy back")
    left.set(xscale="log", yscale="log", ylabel="seconds until whole again", title="A lost context")
    left.legend(loc="upper left")
    for axes, host_price, title in (
        (middle, 0.0, "Room in host memory"),
        (right, 1.0, "Host memory full, too"),
    ):
        keep = tokens / pool * absence[:, None]
        offload = reload_s + host_price * tokens / host * absence[:, None]
        drop = np.broadcast_to(prefill_s, keep.shape)
        choice = np.argmin(np.stack([keep, offload, drop]), axis=0)
        colours = ListedColormap(COLOURS)
        axes.pcolormesh(tokens, absence, choice, cmap=colours, vmin=0, vmax=2, rasterized=True)
        # Without host memory: below this line a context is kept, above it computed again.
        axes.plot(tokens, prefill_s * pool / tokens, color="black", linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", title=title, ylabel="expected absence (s)")
    for axes in (left, middle, right):
        axes.set_xlabel("context (tokens)")
    handles = [Patch(color=c, label=t) for c, t in zip(COLOURS, CHOICES, strict=True)]
    dashed = Line2D([], [], color="black", linestyle="--", linewidth=1)
    dashed.set_label("keep below, drop above, without host memory")
    figure.legend(handles=[*handles, dashed], loc="outside lower center", ncols=4)
    figure.suptitle(f"{name}: pool {pool:,} tokens, host memory {host:,}", fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
