# SPDX-License-Identifier: Apache-2.0
"""Whether `mars calibrate` recovers a curve that is known: that of the emulated accelerator.

Starts vLLM's API server on the emulated accelerator under one profile, measures it over HTTP
beginning from another one, and prints by how much the fitted curves are off. About six minutes,
on a machine that does nothing else: two cores that are busy otherwise give wrong times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from mars.bench.calibrate import curve_error, fit
from mars.bench.calibrate_http import Plan, measure
from mars.bench.calibrate_report import draw, rows
from mars.engine.emulated import prepare_model_dir
from mars.engine.emulated.launch import server_arguments, server_environment
from mars.profiles import Profile, load_profile
from mars.testing.server import ApiServer, free_port

TARGET = 0.03


async def samples_of(profile: Profile, url: str, max_batch: int, max_tokens: int):
    """Everything that is measured."""
    plan = Plan(
        max_tokens=max_tokens,
        max_batch=max_batch,
        pool_tokens=profile.kv_tokens,
        chunk_tokens=profile.max_num_batched_tokens,
    )
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        print(f"\r{done} of {plan.num_points} measurements", end="", flush=True)

    samples = await measure(url, profile.model, plan, advance)
    print()
    return samples


def main() -> None:
    """Print residuals and the errors of both curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", default="h100-qwen3-coder-30b", help="profile that is emulated")
    parser.add_argument("--start", default="a100-qwen3-coder-30b", help="profile to begin with")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32768)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    truth, start = load_profile(options.truth), load_profile(options.start)
    port = options.port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        model_dir = prepare_model_dir(truth, Path(folder) / "model")
        server = ApiServer(
            server_arguments(truth, model_dir, port=port),
            environment=server_environment(os.environ),
            log_path=Path(folder) / "server.log",
        )
        with server:
            url = f"http://127.0.0.1:{port}"
            samples = asyncio.run(samples_of(truth, url, options.max_batch, options.max_tokens))
    found = fit(samples, start.cost)
    for row in rows(samples, found):
        print(f"{row[0]:28} {row[1]:>10} {row[2]:>10} {row[3]:>8}")
    print(f"R2: prefill {found.r2_prefill:.5f}, decode {found.r2_decode:.5f}")
    prefill, decode = curve_error(found.cost, truth.cost, samples)
    for name, error in (("prefill", prefill), ("decode", decode)):
        verdict = "ok" if error <= TARGET else "OVER"
        print(f"{name}: fitted curve at most {error:.1%} off the known one ({verdict})")
    if options.plot:
        draw(samples, found).savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
