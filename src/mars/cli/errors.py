# SPDX-License-Identifier: Apache-2.0
"""How the command line fails: one message, its fix, and an exit status."""

from __future__ import annotations

FAILED = 1
"""Exit status of a command that could not do its work. Wrong usage exits with 2."""

OPTIONAL = {
    "matplotlib": "bench",
    "polars": "bench",
    "pyarrow": "bench",
    "scipy": "bench",
    "vllm": "vllm",
}
"""Packages that the base installation lacks, and the extra that brings each."""


class CliError(Exception):
    """A command cannot go on.

    Args:
        cause: What is wrong, naming the setting, file, port or process.
        fix: What to do about it.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.fix = fix


def describe(error: BaseException) -> list[str] | None:
    """The lines to show for an error of ours; None for one that is a defect.

    Errors that MARS raises on purpose say in their message what is wrong and what to do:
    those of its own classes. A file that cannot be opened says which. Anything else deserves
    its traceback.
    """
    if isinstance(error, CliError):
        return [error.cause] + ([f"fix: {error.fix}"] if error.fix else [])
    if isinstance(error, Exception) and type(error).__module__.startswith("mars."):
        return [str(error)]
    missing = _missing_module(error)
    if missing in OPTIONAL:
        fix = f"fix: pip install 'mars-serving[{OPTIONAL[missing]}]'"
        return [f"{missing} is not installed", fix]
    if isinstance(error, OSError) and error.filename:
        return [f"{error.filename}: {error.strerror}"]
    return None


def _missing_module(error: BaseException | None) -> str:
    """The package whose absence is the root of an ImportError; "" where that is not it."""
    while isinstance(error, ImportError):
        if isinstance(error, ModuleNotFoundError):
            return (error.name or "").partition(".")[0]
        error = error.__cause__
    return ""
