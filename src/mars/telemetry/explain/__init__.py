# SPDX-License-Identifier: Apache-2.0
"""Where a session's time went and why, from the event log of a run."""

from mars.telemetry.explain.log import RunLog, UnknownSessionError
from mars.telemetry.explain.report import (
    Explanation,
    SessionLine,
    explain,
    list_sessions,
)

__all__ = [
    "Explanation",
    "RunLog",
    "SessionLine",
    "UnknownSessionError",
    "explain",
    "list_sessions",
]
