# SPDX-License-Identifier: Apache-2.0
"""The unified information stream: codec, bus, log, fold and transport of events."""

from mars.telemetry.bus import Bus, Reader
from mars.telemetry.codec import CodecError, Opaque, Record
from mars.telemetry.fold import Fold, Phase, SessionView
from mars.telemetry.sink import JsonlSink, LogError, read_events, read_header, read_records

__all__ = [
    "Bus",
    "CodecError",
    "Fold",
    "JsonlSink",
    "LogError",
    "Opaque",
    "Phase",
    "Reader",
    "Record",
    "SessionView",
    "read_events",
    "read_header",
    "read_records",
]
