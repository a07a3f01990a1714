# SPDX-License-Identifier: Apache-2.0
"""MARS: adaptive co-scheduling of GPU inference and CPU tools for LLM agents."""

__version__ = "0.1.0"
