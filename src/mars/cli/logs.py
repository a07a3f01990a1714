# SPDX-License-Identifier: Apache-2.0
"""Logs go to standard error: for people on a terminal, as JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog
import structlog.tracebacks

Format = Literal["auto", "console", "json"]


def log_to_stderr(form: Format = "auto") -> None:
    """Configure the logs of this process, those of libraries among them.

    Standard output stays for a verb's product.

    Args:
        form: as ``telemetry.log_format``.
    """
    is_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    first: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks never show local variables: requests and keys are among them.
    last: list[Any] = [
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    ]
    if is_json:
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    of_libraries = logging.StreamHandler(sys.stderr)
    of_libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[of_libraries], level=logging.WARNING, force=True)
