# SPDX-License-Identifier: Apache-2.0
"""Where load samples come from: this host, and ``/metrics`` of a stock vLLM."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from mars.core.events import HostSampled
from mars.gateway.load import EngineLoad
from mars.telemetry.host import HostMeter


class TelemetryError(RuntimeError):
    """Telemetry cannot be read; the message names the missing piece."""


class HostSampler:
    """Samples the CPUs of this host; the first sample covers the time since creation.

    Args:
        tools: (slots, running, queued, delay of the latest started call in s).
    """

    def __init__(self, tools: Callable[[], tuple[int, int, int, float]]) -> None:
        self._tools = tools
        self._meter = HostMeter()

    def sample(self, now: float) -> HostSampled:
        """One sample at ``now``."""
        slots, running, queued, delay_s = self._tools()
        return HostSampled(
            time=now,
            cpu_cores=max(1, round(self._meter.cores)),
            cpu_usage=self._meter.usage(),
            cpu_pressure=self._meter.pressure(),
            tool_slots=slots,
            tools_running=running,
            tools_queued=queued,
            tool_queue_delay_s=delay_s,
            memory_bytes_free=self._meter.memory_bytes_free(),
        )


_GAUGES = {
    "kv_usage": "vllm:kv_cache_usage_perc",
    "num_running": "vllm:num_requests_running",
    "num_waiting": "vllm:num_requests_waiting",
    "preemptions": "vllm:num_preemptions",
}
_CONFIG = "vllm:cache_config_info"


def parse_metrics(text: str, now: float) -> EngineLoad:
    """An engine sample from vLLM's Prometheus text (names of vLLM 0.30 to 0.33).

    Several engines behind one server are summed; their KV usage is averaged.

    Raises:
        TelemetryError: a metric is missing (never read as zero).
    """
    found: dict[str, list[float]] = {}
    num_blocks, block_size = 0, 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _CONFIG:
                num_blocks += _config_number(sample.labels, "num_gpu_blocks")
                block_size = _config_number(sample.labels, "block_size")
            elif not sample.name.endswith("_created"):
                found.setdefault(sample.name.removesuffix("_total"), []).append(sample.value)
    values = {key: found.get(name) for key, name in _GAUGES.items()}
    missing = [name for key, name in _GAUGES.items() if not values[key]]
    if not num_blocks:
        missing.append(_CONFIG)
    if missing:
        raise TelemetryError(
            f"the engine's /metrics lacks {', '.join(missing)}; is it vLLM 0.30 to 0.33, "
            "started without --disable-log-stats?"
        )
    kv_usage = values["kv_usage"] or []
    usage = sum(kv_usage) / len(kv_usage)
    return EngineLoad(
        time=now,
        kv_blocks_total=num_blocks,
        kv_blocks_free=round(num_blocks * (1.0 - usage)),
        kv_blocks_retained=None,
        block_size=block_size,
        num_running=int(sum(values["num_running"] or [])),
        num_waiting=int(sum(values["num_waiting"] or [])),
        preemptions=int(sum(values["preemptions"] or [])),
        computed_tokens=None,
        recomputed_tokens=None,
    )


def _config_number(labels: dict[str, str], name: str) -> int:
    try:
        return int(labels[name])
    except (KeyError, ValueError):
        raise TelemetryError(f"the engine's {_CONFIG} has no number {name!r}") from None


async def scrape(client: aiohttp.ClientSession, engine_url: str, now: float) -> EngineLoad:
    """Read ``/metrics`` once.

    Raises:
        TelemetryError: unreachable, an error status, or a missing metric.
    """
    timeout = aiohttp.ClientTimeout(total=2.0)
    try:
        async with client.get(f"{engine_url}/metrics", timeout=timeout) as response:
            text = await response.text()
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TelemetryError(f"{engine_url}/metrics cannot be read: {error}") from error
    if status != 200:
        raise TelemetryError(f"{engine_url}/metrics answered {status}")
    return parse_metrics(text, now)
