# SPDX-License-Identifier: Apache-2.0
"""What ``GET /mars/v1/state`` tells: why the window is what it is, and who waits."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mars.core.model import Session
from mars.telemetry import Phase

if TYPE_CHECKING:
    from mars.gateway.app import Gateway

MAX_LISTED = 1_000
"""Sessions listed of each kind; the numbers beside them count all."""


def state_of(gateway: Gateway) -> dict[str, Any]:
    """A JSON-ready snapshot."""
    admission, now = gateway.admission, gateway.clock()
    window = admission.window()
    places = admission.places()
    active = list(admission.active.sessions.values())
    return {
        "time": now,
        "policy": gateway.policy.name,
        "window": None if window == math.inf else window,
        "policy_state": gateway.policy.state(),
        "num_active": len(active),
        "num_held": len(places),
        "num_open_turns": gateway.turns.num_open,
        "is_draining": admission.is_draining,
        "is_stale": gateway.board.is_stale(now),
        "alarms": gateway.board.alarms(now),
        "active": [_active(gateway, session) for session in active[:MAX_LISTED]],
        "held": [
            {
                "session_id": place.held.session.session_id,
                "tenant": place.held.session.tenant,
                "held_s": now - place.held.held_since,
                "num_prompt_tokens": place.held.num_prompt_tokens,
                "is_away": place.away_since is not None,
                "is_paused": place.held.is_paused,
            }
            for place in places[:MAX_LISTED]
        ],
        "load": gateway.board.load(now)._asdict(),
        "counters": asdict(gateway.hub.fold.counters),
        "last_seq": gateway.hub.bus.last_seq,
        "engine_links": gateway.hub.links(),
    }


def _active(gateway: Gateway, session: Session) -> dict[str, Any]:
    view = gateway.hub.fold.sessions.get(session.session_id)
    return {
        "session_id": session.session_id,
        "generation": session.generation,
        "parent": session.parent,
        "tenant": session.tenant,
        "activity": session.activity,
        "phase": view.phase if view is not None else Phase.IDLE,
        "num_turns": session.num_turns,
        "num_open_turns": session.num_open_turns,
        "context_tokens": session.context_tokens,
        "tool_name": session.tool.tool_name if session.tool is not None else None,
    }
