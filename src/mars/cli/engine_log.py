# SPDX-License-Identifier: Apache-2.0
"""What vLLM's log says about its end."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A line is `(EngineCore pid=7) ERROR 11-21 03:06:27 [core.py:195] ValueError: text`; only the
# last part is sure to be there. Warnings that mention an error do not begin with one.
_RAISED = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR \S+ \S+ \[[^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$"
)
_USAGE = re.compile(r"^\S+: error: (.+)$")
_CONSEQUENCE = "Engine core initialization failed"
"""vLLM's front process says so after the cause was logged by another one."""


def reason(lines: Sequence[str]) -> str | None:
    """The last error that is a cause, else the last; None where the log shows none."""
    found = [match[1] for line in lines if (match := _RAISED.match(line) or _USAGE.match(line))]
    causes = [text for text in found if _CONSEQUENCE not in text]
    return (causes or found or [None])[-1]
