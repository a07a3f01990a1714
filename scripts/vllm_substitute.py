# SPDX-License-Identifier: Apache-2.0
"""pytest plug-in of ``vllm_own_tests.py``: another class where vLLM's tests say Scheduler."""

from __future__ import annotations

import os
from typing import Any


def pytest_configure(config: Any) -> None:
    """Put the class in place before any test module is imported."""
    for marker in ("cpu_test", "skip_global_cleanup"):
        config.addinivalue_line("markers", marker)
    substitute = os.environ.get("MARS_SUBSTITUTE", "")
    if substitute:
        _put_in_place(substitute)


def _put_in_place(policy: str) -> None:
    from vllm.v1.core.sched import async_scheduler, diffusion_scheduler, scheduler

    del diffusion_scheduler  # bound to vLLM's own classes by being imported first
    from mars.engine.vllm.scheduler import MarsScheduler

    class Substitute(MarsScheduler):
        """With the policy that the run is about, and every step checked."""

        is_async = False

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            mars = {"policy": policy, "check_integrity_every": 1}
            vllm_config.additional_config = {"mars": mars}
            # A test says by the class which of the two it wants; the CPU platform switches
            # the setting off.
            vllm_config.scheduler_config.async_scheduling = self.is_async
            super().__init__(vllm_config, *args, **kwargs)

    class AsyncSubstitute(Substitute):
        is_async = True

    scheduler.Scheduler = Substitute  # type: ignore[misc]
    async_scheduler.AsyncScheduler = AsyncSubstitute  # type: ignore[misc]
