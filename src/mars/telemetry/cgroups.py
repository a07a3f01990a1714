# SPDX-License-Identifier: Apache-2.0
"""Where this process is among the control groups: version 2, version 1, mixed, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")


@dataclasses.dataclass(frozen=True, slots=True)
class Hierarchies:
    """Own directory in each hierarchy; ``v1`` maps controller to directory."""

    v2: Path | None = None
    v1: dict[str, Path] = dataclasses.field(default_factory=dict[str, Path])


def find_hierarchies(proc: Path = Path("/proc/self")) -> Hierarchies:
    """Where this process is, from ``mountinfo`` and ``cgroup`` under ``proc``."""
    own: dict[str, str] = {}
    for line in read_text(proc / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if number != "0" else [""]:
            own[name] = path
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in read_text(proc / "mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" and "" in own:
            v2 = _inside(mount, root, own[""])
        elif kind == "cgroup":
            for name in options.split(","):
                if name in V1_CONTROLLERS and name in own:
                    v1[name] = _inside(mount, root, own[name])
    return Hierarchies(v2, v1)


def _inside(mount: str, root: str, path: str) -> Path:
    relative = path[len(root) :] if root != "/" and path.startswith(root) else path
    return Path(mount + "/" + relative.strip("/"))


def read_text(path: Path) -> str:
    """What a file says; empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
