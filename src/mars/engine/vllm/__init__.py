# SPDX-License-Identifier: Apache-2.0
"""The plug-in for stock vLLM: the only folder, with the emulated one, that imports it."""

from mars.engine.vllm.scheduler import MarsScheduler

__all__ = ["MarsScheduler"]
