# SPDX-License-Identifier: Apache-2.0
"""Logs go to standard error: for people on a terminal, as JSON lines elsewhere."""

from __future__ import annotations

import sys

import structlog


def log_to_stderr() -> None:
    """Configure structlog for this process. Standard output stays for a verb's product."""
    is_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks
            if not is_terminal
            else structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
