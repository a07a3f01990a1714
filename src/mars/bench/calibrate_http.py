# SPDX-License-Identifier: Apache-2.0
"""Measure an engine's prefill and decode times over HTTP, as any client could.

Every prompt is new (token ids of content that no other prompt has), so that no prefix cache
helps. A batch is measured while it only decodes: from the last of its first tokens to the first
of its last ones. Each point is repeated and the smallest time counts: whatever else the
machine does can only make an engine slower.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp
import msgspec

from mars.bench.calibrate import CalibrationError, Decode, Prefill, Samples
from mars.bench.stream import error_text
from mars.traces.content import filler

FIRST_TOKENS = 128
DECODE_STEPS = 48
"""Steps of pure decode in a sample, at least."""
REPEATS = 3
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: powers of two up to these bounds.

    ``pool_tokens`` is what the KV pool holds; batches that would not fit are left out.
    """

    max_tokens: int
    max_batch: int
    pool_tokens: int
    chunk_tokens: int

    @property
    def lengths(self) -> list[int]:
        """Prompt lengths, half steps included."""
        found: list[int] = []
        length = FIRST_TOKENS
        while length <= self.max_tokens:
            found += [length, length * 3 // 2] if length * 3 // 2 <= self.max_tokens else [length]
            length *= 2
        return found

    @property
    def batches(self) -> list[tuple[int, int]]:
        """(batch, context) of the decode samples."""
        contexts = [c for c in (256, 1024, 4096, 16384, 65536) if c <= self.max_tokens]
        found: list[tuple[int, int]] = []
        batch = 1
        while batch <= self.max_batch:
            room = 0.8 * self.pool_tokens / batch - _num_outputs(batch) - 16
            found += [(batch, context) for context in contexts if context <= room]
            batch *= 2
        return found

    @property
    def num_points(self) -> int:
        """For progress."""
        return REPEATS * (len(self.lengths) + len(self.batches))


def _num_outputs(batch: int) -> int:
    # All must have begun before the first ends; a prompt may have to wait for all others.
    return 2 * DECODE_STEPS + 4 * batch


async def measure(url: str, model: str, plan: Plan, advance: Callable[[], None]) -> Samples:
    """Take all samples.

    Args:
        url: base URL, without ``/v1``.
        model: as the server names it.
        plan: what to measure.
        advance: told after each measurement.

    Raises:
        CalibrationError: the server refuses, or ends a stream early.
    """
    prefills: list[Prefill] = []
    decodes: list[Decode] = []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        engine = _Engine(http, f"{url}/v1/completions", model)
        await engine.times(FIRST_TOKENS, 2)  # connection and first use, not measured
        for length in plan.lengths:
            taken = [await _prefill_s(engine, length, advance) for _ in range(REPEATS)]
            prefills.append(Prefill(length, min(taken)))
        for batch, context in plan.batches:
            known = [await _decode(engine, batch, context, advance) for _ in range(REPEATS)]
            samples = [sample for sample in known if sample is not None]
            if samples:
                decodes.append(min(samples, key=lambda s: s.seconds))
    return Samples(tuple(prefills), tuple(decodes), plan.chunk_tokens)


async def _prefill_s(engine: _Engine, length: int, advance: Callable[[], None]) -> float:
    sent_at = time.monotonic()
    times = await engine.times(length, 1)
    advance()
    return times[0] - sent_at


async def _decode(
    engine: _Engine, batch: int, context: int, advance: Callable[[], None]
) -> Decode | None:
    """One batch; None where its sequences hardly overlapped."""
    num_outputs = _num_outputs(batch)
    all_times = await asyncio.gather(*(engine.times(context, num_outputs) for _ in range(batch)))
    advance()
    begin, end = max(t[0] for t in all_times), min(t[-1] for t in all_times)
    inside = [[t for t in times if begin < t <= end] for times in all_times]
    num_steps = min(len(times) for times in inside)
    if num_steps < DECODE_STEPS // 2:
        return None
    spans = [(t[-1] - t[0]) / (len(t) - 1) for t in inside]
    # The mean context while it was measured: half of what was put out comes to the prompt.
    before = [
        sum(t <= begin for t in times) + len(now) / 2
        for times, now in zip(all_times, inside, strict=True)
    ]
    mean_context = context + int(sum(before) / batch)
    return Decode(batch, mean_context, sum(spans) / batch)


class _Engine:
    def __init__(self, http: aiohttp.ClientSession, url: str, model: str) -> None:
        self._http = http
        self._url = url
        self._model = model
        self._names = self._fresh()

    def _fresh(self) -> Iterator[str]:
        begun = time.time_ns()
        number = 0
        while True:
            number += 1
            yield f"calibrate/{begun}/{number}"

    async def times(self, num_prompt: int, num_outputs: int) -> list[float]:
        """Send a new prompt; when each token came (``time.monotonic()``)."""
        body = {
            "model": self._model,
            "prompt": filler(next(self._names), 0, num_prompt),
            "max_tokens": num_outputs,
            "min_tokens": num_outputs,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
        }
        times: list[float] = []
        try:
            async with self._http.post(self._url, json=body) as reply:
                if reply.status != 200:
                    raise CalibrationError(
                        f"{self._url} answered {reply.status}: {error_text(await reply.read())}"
                    )
                times += [
                    time.monotonic()
                    async for line in reply.content
                    if line.startswith(b"data:") and _has_token(line)
                ]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CalibrationError(f"{self._url}: {type(error).__name__}: {error}") from error
        if not times:
            raise CalibrationError(f"{self._url}: a stream ended without a token")
        return times


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []


def _has_token(line: bytes) -> bool:
    body = line[5:].strip()
    return body != b"[DONE]" and bool(msgspec.json.decode(body, type=_Chunk).choices)
