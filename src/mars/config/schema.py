# SPDX-License-Identifier: Apache-2.0
"""The settings and their defaults. Every default says where it comes from.

Structs are frozen and refuse unknown keys. Bounds on a number are part of its type; what
two settings owe each other is checked when they come together.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from mars.config.tenants import KeyConfig, check_keys
from mars.config.types import Count, Port, Seconds, Share


class RetentionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard bounds on the KV that is held for tool-blocked sessions, whatever a policy wishes."""

    max_share: Share = 0.5
    """Of the KV pool. Chosen: half the memory stays for those who compute."""

    max_hold_s: Seconds = 120.0
    """Longest hold of one session's KV. Chosen: 99 of 100 test runs in the recorded
    traces take fewer CPU seconds than this."""

    session_idle_s: Seconds = 3600.0
    """A session without a turn for so long is forgotten by the engine. Bounds memory when
    nobody says that a session ended."""


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine's process needs; travels in vLLM's ``--additional-config``."""

    policy: str = "mars"
    """Scheduling policy: a registered name, ``name:ARG``, or the dotted path of a class."""

    policy_options: dict[str, Any] = {}
    """Keyword arguments of the policy."""

    retention: RetentionConfig = RetentionConfig()

    events_endpoint: str | None = None
    """ZMQ address the engine publishes its events on (it binds). None: no events."""

    control_endpoint: str | None = None
    """ZMQ address the engine takes control messages on (it binds). None: no control."""

    profile: str | None = None
    """Cost profile, by name or file: what the emulated accelerator's steps take, and what
    policies that price recomputation reckon with."""

    time_scale: Seconds = 1.0
    """The emulated accelerator's modelled times are multiplied by this; 2 is half speed."""

    scripts: str | None = None
    """File of scripted replies for agents that are left as they are, on the emulated
    accelerator (:mod:`mars.engine.emulated.scripts`). None: filler."""

    check_integrity_every: Annotated[int, Meta(ge=0)] = 0
    """For debugging: check the block accounting every so many steps, and stop the engine
    with what is wrong. 0: never; 1 costs about one pass over all blocks per step."""

    sample_interval_s: Seconds = 0.25
    """Between two samples of the engine's load. Chosen: the control interval is 0.2 s and
    decisions need one fresh sample, not several."""


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The control plane in front of the engine."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless you say otherwise: there is no encryption here."""

    port: Port = 8000
    """Port to listen on; 0 takes a free one. vLLM's default, so clients need no change."""

    engine_url: str = "http://127.0.0.1:8001"
    """Base URL of the engine's HTTP server, without ``/v1``."""

    engine_api_key: str | None = None
    """Sent to the engine as bearer token, in place of the client's."""

    api_key: str | None = None
    """Bearer token that clients must send. None, and no ``keys``: open."""

    keys: tuple[KeyConfig, ...] = ()
    """Bearer tokens with tenants, weights and limits of their own."""

    admin_key: str | None = None
    """Bearer token for ``/mars/v1``: state, events, reload, drain. None: those of clients
    do there, too, which is refused where other hosts can reach the gateway."""

    metrics_key: str | None = None
    """Bearer token for ``/metrics``. None: open, as vLLM's own."""

    admission: str = "mars"
    """Admission policy: a registered name, ``name:ARG``, or the dotted path of a class."""

    admission_options: dict[str, Any] = {}
    """Keyword arguments of the admission policy."""

    control_interval_s: Seconds = 0.2
    """Between two moves of the admission window."""

    telemetry_stale_s: Seconds = 2.0
    """Engine load older than this is stale, which is an error state, not zero load."""

    engine_wait_s: Annotated[float, Meta(ge=0)] = 240.0
    """A turn waits so long for an engine that was there and has gone, with heartbeats or as
    long as its client bears silence. Chosen: a restart with a large model takes minutes."""

    hold_budget_s: Seconds | None = None
    """Longest a request of a held session stays open before its client is asked to come
    back; its place in the queue is kept. For clients that no heartbeat keeps waiting
    (Anthropic's API). None: what each client bears, 100 to 280 s (docs/sessions.md)."""

    keepalive_s: Seconds = 5.0
    """Between two heartbeats on the open stream of a held session."""

    hold_tool_replies: Literal["auto", "off"] = "auto"
    """Hold back replies that ask for tools while the host's CPUs are swamped, for clients
    that run their tools on this host by themselves. ``off``: never."""

    tool_hold_s: Annotated[float, Meta(gt=0, le=240)] = 60.0
    """Longest such a hold. Claude Code fails for good when a stream stalls for 300 s, and
    Codex repeats it; 60 s is far below both (chosen)."""

    stamp_priority: bool = False
    """Send ``X-Vllm-Priority`` with each turn, the oldest session first: for an engine
    without the plug-in, started with ``--scheduling-policy priority`` (it refuses a priority
    otherwise)."""

    idle_session_s: Seconds = 600.0
    """A session without a request for so long has ended, if nobody says so earlier."""

    final_answer_s: Seconds = 60.0
    """The same for one whose last reply asked for no tool: its task is done, or its human's
    turn. What comes later is admitted anew (chosen: agents that go on do so within seconds)."""

    max_body_bytes: Count = 64 * 2**20
    """Largest request body; a context of 262,144 tokens is about 1 MiB of text."""

    max_header_bytes: Annotated[int, Meta(ge=1024)] = 64 * 2**10
    """Request line and headers together. 64 KiB: what uvicorn allows, above any agent's."""

    drain_s: Seconds = 30.0
    """On shutdown, streams that are open may run on for so long."""

    def __post_init__(self) -> None:
        budget_s = self.hold_budget_s or 100.0
        if self.keepalive_s >= budget_s:
            raise ValueError(
                f"keepalive_s ({self.keepalive_s:g}) must be below hold_budget_s "
                f"({budget_s:g}): the first heartbeat would come too late"
            )
        if self.telemetry_stale_s <= self.control_interval_s:
            raise ValueError(
                f"telemetry_stale_s ({self.telemetry_stale_s:g}) must exceed "
                f"control_interval_s ({self.control_interval_s:g}): every sample would be stale"
            )
        if not self.engine_url.startswith(("http://", "https://")):
            raise ValueError(f"engine_url {self.engine_url!r} must begin with http:// or https://")
        check_keys(self.keys)

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            yield name, "***" if value and name.endswith("_key") else value

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"GatewayConfig({fields})"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this host only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ToolsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tool runtime: how many tool calls run at once, and within which bounds."""

    slots: Count | None = None
    """Tool calls that run at once. None: one per core of ``cpu_list``."""

    policy: str = "fifo"
    """Order of the tool queue: a registered name, ``name:ARG``, or a dotted path."""

    policy_options: dict[str, Any] = {}
    """Keyword arguments of the tool policy."""

    cpu_list: str | None = None
    """Cores for tools, as in ``2-5,8``; an engine that `mars serve` starts keeps off them. None:
    all that this process may use."""

    socket: str | None = None
    """Unix socket of the tool server that runs beside the gateway. None: one in a folder of
    its own, named at the start."""

    timeout_s: Seconds = 600.0
    """A tool call that runs longer is killed with all its processes."""

    memory_bytes: Count | None = None
    """Memory of one tool call. None: no bound of ours."""

    disk_floor_bytes: Count | None = 512 * 2**20
    """What must stay free in the file system of a tool's folder: a call that writes much while
    less is left is ended. Chosen: enough for logs and other sessions to go on."""

    output_bytes: Count = 2**20
    """Of standard output and of standard error each; the middle of the rest is dropped."""


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The event stream, as the control plane reads and keeps it."""

    events_path: str | None = None
    """JSONL file that every event is appended to. None: not kept."""

    events_endpoint: str | None = None
    """ZMQ address to read the engine's events from; the same as the engine's own."""

    control_endpoint: str | None = None
    """ZMQ address to send control messages to; the same as the engine's own."""

    engine_ranks: Count = 1
    """Data-parallel ranks of the engine. Each has both endpoints to itself: the port plus
    the rank (leave room between the two), or the path with ``.RANK`` at its end."""

    queue_events: Count = 65536
    """Events that may wait between source and reader; more are dropped and counted."""

    spans: bool = False
    """Send OpenTelemetry spans (session, turn, tool) by OTLP to where the standard
    ``OTEL_...`` variables say; needs the extra ``otel``."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """Of the log on standard error. ``auto``: JSON lines unless that is a terminal."""


class MarsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything."""

    engine: EngineConfig = EngineConfig()
    gateway: GatewayConfig = GatewayConfig()
    tools: ToolsConfig = ToolsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
