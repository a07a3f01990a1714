# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and memory of recorded tool calls whose recording lacks them.

Most public recordings give a tool's duration only. The class models are those of the AgentCgroup
measurements (``generator_params.json``, ``tool_classes_swe_clean``): tests, installs and scripts
keep a fraction of a core busy for as long as they run, everything else costs a process start.
Drawn per call from (seed, session, turn, call): the same import gives the same numbers.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.random import Generator

from mars.traces.params import Z_90, density, draw_quantiles, generator_params
from mars.traces.schema import TraceTool

START_CPU_S = (0.03, 0.1)
"""CPU seconds of a short command (fork, interpreter, a few files read); uniform between."""
MIN_DURATION_S = 1e-4

_CLASSES = {
    "test": "test",
    "install": "install_build",
    "build": "install_build",
    "python": "python_script",
    "script": "python_script",
    "subagent": "subagent_task",
    "search": "search_ls_grep",
    "git": "git",
}
_UNKNOWN = {"tool", "shell", "Bash", "exec_command", "terminal"}
"""Names that do not say what ran."""
_MEMORY_CLASSES = {"test": 3856.0, "install_build": 96.0, "python_script": 48.0}
"""Classes that need memory, and the largest rise seen, in MB."""


def call_rng(seed: int, session_id: str, turn_index: int, call_index: int) -> Generator:
    """Return the generator of one tool call."""
    key = f"{seed}/{session_id}/{turn_index}/{call_index}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()))


def fill_in(
    name: str, duration_s: float, rng: Generator, *, command: str | None = None
) -> TraceTool:
    """Return the call with modelled CPU seconds and peak memory.

    Where the name does not say what ran ("tool", "shell"), a class is drawn by how likely each is
    to last that long, and used for the costs only.
    """
    known = _CLASSES.get(name)
    if name in _UNKNOWN:
        known = _likely_class(duration_s, rng)
    return TraceTool(
        name=name,
        duration_s=duration_s,
        cpu_s=_cpu_s(known, duration_s, rng),
        peak_bytes=_peak_bytes(known, duration_s, rng),
        command=command,
    )


def _likely_class(duration_s: float, rng: Generator) -> str:
    classes = generator_params()["tool_classes_swe_clean"]
    names = [name for name, fit in classes.items() if isinstance(fit, dict)]
    seconds = max(duration_s, MIN_DURATION_S)
    weights = np.array([classes[n]["mix"] * density(seconds, classes[n]["dur"]) for n in names])
    if not weights.sum() > 0.0:
        return "test"
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _cpu_s(tool_class: str | None, duration_s: float, rng: Generator) -> float:
    start_s = float(rng.uniform(*START_CPU_S))
    if tool_class is None or tool_class not in generator_params()["tool_classes_swe_clean"]:
        return round(min(start_s, duration_s), 4)
    cores = generator_params()["tool_classes_swe_clean"][tool_class]["cores"]
    if isinstance(cores, dict):
        cores = float(draw_quantiles(rng, cores, 1)[0])
    return round(min(max(cores * duration_s, start_s), max(1.0, cores) * duration_s), 4)


def _peak_bytes(tool_class: str | None, duration_s: float, rng: Generator) -> int:
    if tool_class not in _MEMORY_CLASSES or duration_s < 0.1:
        return 0
    fit = generator_params()["tool_classes_swe_clean"][tool_class]["mem_delta_mb"]
    sigma = math.log(fit["p90"] / fit["p50"]) / Z_90
    drawn = fit["p50"] * math.exp(sigma * float(rng.standard_normal()))
    return int(min(drawn, _MEMORY_CLASSES[tool_class]) * 1e6)
