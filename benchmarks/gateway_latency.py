# SPDX-License-Identifier: Apache-2.0
"""What the gateway adds to a streamed reply: direct vs through it, difference and ratio.

Budget: p99 <= 5 ms added to the first byte at 64 concurrent streams on 2 cores. Engine
(fake), gateway and client are three processes on this host and share its cores, so run it
on a quiet machine; direct and through-the-gateway rounds alternate to share what noise
there is. ``--streams 1`` shows the cost without queueing.

``--keys 10`` makes the streams those of ten tenants with every limit there is.

Run: ``python benchmarks/gateway_latency.py [--streams 64] [--rounds 5] [--keys 0]``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import msgspec

from mars.config import GatewayConfig, KeyConfig, MarsConfig

BUDGET_MS = 5.0
RUN = "import sys,msgspec;from mars.config import MarsConfig;from mars.gateway import run;\
run(msgspec.json.decode(sys.argv[1],type=MarsConfig))"


@dataclass(slots=True)
class Times:
    """Milliseconds of all streams of one kind."""

    first_byte: list[float] = field(default_factory=list[float])
    whole: list[float] = field(default_factory=list[float])


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[None]:
    """A Python process, killed at the end."""
    made = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    try:
        yield
    finally:
        made.kill()
        await made.wait()


async def ready(client: aiohttp.ClientSession, url: str) -> None:
    """Return when a server answers ``/health`` with 200."""
    async with asyncio.timeout(60.0):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


async def stream(
    client: aiohttp.ClientSession, url: str, name: str, key: str, times: Times
) -> None:
    """One streamed request, timed."""
    body = {"stream": True, "messages": [{"role": "user", "content": "x" * 8192}]}
    started = time.perf_counter()
    headers = {"X-Session-ID": name, "Authorization": f"Bearer {key}"}
    async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        await response.content.readany()
        times.first_byte.append((time.perf_counter() - started) * 1e3)
        while await response.content.readany():
            pass
    times.whole.append((time.perf_counter() - started) * 1e3)


async def one_round(
    client: aiohttp.ClientSession, url: str, times: Times, options: argparse.Namespace
) -> None:
    """``streams`` concurrent agents, each with ``turns`` streams, arrivals spread evenly."""

    async def agent(index: int) -> None:
        await asyncio.sleep(options.spread_s * index / options.streams)
        for _ in range(options.turns):
            key = f"key-{index % max(1, options.keys)}"
            await stream(client, url, f"agent-{index}", key, times)

    await asyncio.gather(*(agent(i) for i in range(options.streams)))


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between order statistics."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def report(direct: Times, through: Times) -> bool:
    """Print the table; whether the budget holds."""
    print(f"{'ms':<22}{'direct':>9}{'gateway':>9}{'added':>8}{'ratio':>7}")
    for name in ("first_byte", "whole"):
        for share in (0.5, 0.9, 0.99):
            one, two = (percentile(getattr(t, name), share) for t in (direct, through))
            label = f"{name.replace('_', ' ')} p{share * 100:g}"
            print(f"{label:<22}{one:>9.2f}{two:>9.2f}{two - one:>8.2f}{two / one:>7.2f}")
    added = percentile(through.first_byte, 0.99) - percentile(direct.first_byte, 0.99)
    is_within = added <= BUDGET_MS
    verdict = "within" if is_within else "ABOVE"
    print(f"added to the first byte at p99: {added:.2f} ms, {verdict} the budget of {BUDGET_MS} ms")
    return is_within


def keys(number: int) -> tuple[KeyConfig, ...]:
    """Keys whose limits are checked and never reached."""
    limit = 10**6
    return tuple(
        KeyConfig(
            name=f"tenant-{i}",
            key=f"key-{i}",
            max_active_sessions=limit,
            max_held_sessions=limit,
            max_turns=limit,
            max_requests_per_minute=limit,
        )
        for i in range(number)
    )


async def measure(options: argparse.Namespace) -> bool:
    """Start engine and gateway, alternate the rounds, print."""
    engine_port, gateway_port = free_port(), free_port()
    engine_url, gateway_url = (f"http://127.0.0.1:{p}" for p in (engine_port, gateway_port))
    config = MarsConfig(
        gateway=GatewayConfig(
            port=gateway_port, engine_url=engine_url, admission="none", keys=keys(options.keys)
        )
    )
    engine = ["-m", "mars.testing.engine", "--port", str(engine_port)]
    engine += ["--num-tokens", str(options.tokens), "--token-interval-s", str(options.interval_s)]
    direct, through = Times(), Times()
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        process(*engine),
        process("-c", RUN, msgspec.json.encode(config).decode()),
        aiohttp.ClientSession(connector=connector) as client,
    ):
        await ready(client, engine_url)
        await ready(client, gateway_url)
        for url in (engine_url, gateway_url):
            await one_round(client, url, Times(), options)  # connections and caches warm
        for _ in range(options.rounds):
            await one_round(client, engine_url, direct, options)
            await one_round(client, gateway_url, through, options)
    print(
        f"{options.streams} concurrent streams, {len(direct.whole)} of each kind, "
        f"{options.tokens} tokens, one each {options.interval_s * 1e3:g} ms"
    )
    return report(direct, through)


def main() -> None:
    """Measure and print; exit status 1 above the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--interval-s", type=float, default=0.1)
    parser.add_argument("--spread-s", type=float, default=2.0)
    sys.exit(0 if asyncio.run(measure(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
