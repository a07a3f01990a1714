# SPDX-License-Identifier: Apache-2.0
"""What `mars doctor` looks at, one function a row."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from mars.cli.findings import Finding, Verdict
from mars.cli.gateway_checks import GATEWAY_CHECKS
from mars.config import ConfigError, MarsConfig, check_policies

GIB = 2**30
SHM = "/dev/shm"  # noqa: S108 - looked at, not written to

MIN_SHM_BYTES = 64 * 2**20
"""What vLLM's processes use for messages between them; containers often give exactly this."""

MIN_MEMORY_BYTES = 4 * GIB
"""Two processes of vLLM at 0.6 to 1.5 GB each, and room for tools."""

MIN_FILES = 4096
"""Two descriptors a held or streaming request, for a thousand of them and some."""


def python(config: MarsConfig) -> Finding:
    """The interpreter; the installer refuses one that is too old."""
    del config
    found = f"{sys.version.split()[0]} ({sys.executable})"
    return Finding(Verdict.OK, "Python", found)


def settings(config: MarsConfig) -> Finding:
    """Whether the settings name policies there are."""
    found = f"policy {config.engine.policy}, admission {config.gateway.admission}"
    try:
        check_policies(config)
    except ConfigError as error:
        return Finding(Verdict.FAIL, "settings", str(error), "correct it, or leave it out")
    return Finding(Verdict.OK, "settings", found)


def vllm(config: MarsConfig) -> Finding:
    """Version of vLLM, and whether the scheduler finds the seams it builds on."""
    del config
    if importlib.util.find_spec("vllm") is None:
        return Finding(
            Verdict.WARN,
            "vLLM",
            "not installed; the gateway, simulator and trace tools work without",
            "pip install 'mars-serving[vllm]' with a GPU; `make install` without one",
        )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from mars.engine.vllm.compat import UnsupportedEngineError, check_seams, vllm_version
    except ImportError as error:
        fix = "install it anew; see requirements/ci.lock for versions that go together"
        return Finding(Verdict.FAIL, "vLLM", f"does not import: {error}", fix)
    version = vllm_version()
    try:
        check_seams(version)
    except UnsupportedEngineError as error:
        return Finding(Verdict.FAIL, "vLLM", str(error), "install vLLM >=0.30,<0.34")
    return Finding(Verdict.OK, "vLLM", f"{version}, every seam of the scheduler is there")


def gpu(config: MarsConfig) -> Finding:
    """Whether an NVIDIA driver is there."""
    del config
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if nodes:
        return Finding(Verdict.OK, "GPU", f"{len(nodes)} NVIDIA device(s)")
    return Finding(
        Verdict.OK, "GPU", "none; `mars serve --emulate PROFILE` and `make demo` need none"
    )


def cores(config: MarsConfig) -> Finding:
    """Cores this process may use."""
    del config
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} usable of {present}"
    if usable >= 2:
        return Finding(Verdict.OK, "cores", found)
    fix = "give it two: engine and gateway share one now, and emulated time will lag"
    return Finding(Verdict.WARN, "cores", found, fix)


def memory(config: MarsConfig) -> Finding:
    """Free memory of the host."""
    del config
    available = psutil.virtual_memory().available
    found = f"{available / GIB:.1f} GiB available"
    if available >= MIN_MEMORY_BYTES:
        return Finding(Verdict.OK, "memory", found)
    fix = f"free some: vLLM and a few tools want {MIN_MEMORY_BYTES / GIB:.0f} GiB"
    return Finding(Verdict.WARN, "memory", found, fix)


def shared_memory(config: MarsConfig) -> Finding:
    """Size of ``/dev/shm``."""
    del config
    try:
        usage = shutil.disk_usage(SHM)
    except OSError as error:
        fix = "mount a tmpfs there; vLLM's processes talk through it"
        return Finding(Verdict.FAIL, SHM, f"{error.strerror}", fix)
    found = f"{usage.free / GIB:.2f} GiB free"
    if usage.free >= MIN_SHM_BYTES:
        return Finding(Verdict.OK, SHM, found)
    return Finding(Verdict.FAIL, SHM, found, "docker run --shm-size=1g, or --ipc=host")


def pressure(config: MarsConfig) -> Finding:
    """Whether the kernel reports CPU pressure (PSI)."""
    del config
    path = Path("/proc/pressure/cpu")
    try:
        first = path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        fix = "boot with psi=1 on a kernel >= 4.20; until then CPU use stands in for it"
        return Finding(Verdict.WARN, "CPU pressure", f"{path} cannot be read", fix)
    share = next((part for part in first.split() if part.startswith("avg10=")), first)
    return Finding(Verdict.OK, "CPU pressure", f"{share}% of the last 10 s")


def cgroups(config: MarsConfig) -> Finding:
    """Whether tools can be given bounds of their own."""
    del config
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        fix = "boot with systemd.unified_cgroup_hierarchy=1; tools run without bounds meanwhile"
        return Finding(Verdict.WARN, "cgroups", "no cgroup v2", fix)
    own = root / _own_cgroup().lstrip("/")
    if os.access(own, os.W_OK) and os.access(own / "cgroup.procs", os.W_OK):
        return Finding(Verdict.OK, "cgroups", f"v2, {own} may be divided")
    fix = "systemd-run --user --scope -p Delegate=yes mars ...; tools run without bounds meanwhile"
    return Finding(Verdict.WARN, "cgroups", f"v2, but {own} is not ours to divide", fix)


def _own_cgroup() -> str:
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return "/"


def files(config: MarsConfig) -> Finding:
    """How many files and sockets may be open."""
    del config
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (hard limit {hard})"
    if soft >= MIN_FILES:
        return Finding(Verdict.OK, "open files", found)
    fix = f"ulimit -n {min(hard, 65536)}; each held or streaming request takes two"
    return Finding(Verdict.WARN, "open files", found, fix)


CHECKS: tuple[Callable[[MarsConfig], Finding], ...] = (
    python,
    settings,
    vllm,
    gpu,
    cores,
    memory,
    shared_memory,
    pressure,
    cgroups,
    files,
    *GATEWAY_CHECKS,
)
