# SPDX-License-Identifier: Apache-2.0
"""What the control plane tells the engine, as :class:`CoScheduler` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mars.core.coscheduler import CoScheduler
from mars.core.model import ToolCall


def obey(co: CoScheduler, message: Mapping[str, Any], now: float) -> str | None:
    """Carry out one command; the session whose held KV is to be released, if one is.

    Raises:
        KeyError: a field is missing.
        ValueError: the op is unknown.
    """
    session_id: str = message["session_id"]
    match message["op"]:
        case "session_end":
            return session_id if co.end_session(session_id) else None
        case "context_reset":
            is_held = co.reset_context(session_id, message["num_kept_tokens"])
            return session_id if is_held else None
        case "session_paused":
            return session_id if co.give_kv(session_id, gives=True) else None
        case "session_resumed":
            co.give_kv(session_id, gives=False)
        case "tool_started":
            call = ToolCall(
                message["tool_call_id"],
                session_id,
                message["tool_name"],
                queued_at=message["queued_at"],
                started_at=now,
            )
            co.tool_started(call, message.get("expected_return_at"))
        case "tool_finished":
            co.tool_finished(session_id, message["time"])
        case op:
            raise ValueError(f"unknown op {op!r}")
    return None
