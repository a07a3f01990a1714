# SPDX-License-Identifier: Apache-2.0
"""What `mars doctor` says: one finding a row."""

from __future__ import annotations

from enum import Enum

import msgspec


class Verdict(Enum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One row: what was looked at, what was found, and what to do if that is not enough."""

    verdict: Verdict
    what: str
    found: str
    fix: str = ""
