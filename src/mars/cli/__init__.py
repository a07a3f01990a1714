# SPDX-License-Identifier: Apache-2.0
"""The `mars` command."""

from mars.cli.main import main

__all__ = ["main"]
