# SPDX-License-Identifier: Apache-2.0
"""Control groups are found for what they are, and what is missing is said.

The layouts of other machines are plain folders here: what is written is what counts. What
this machine really allows is used for real.
"""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest

from mars.tools.cgroup import ControlGroups, Hierarchies, find_hierarchies
from tools.conftest import is_alive, limits

ALL = limits(
    cpu_weight=50,
    cpu_cores=1.5,
    memory_high_bytes=100,
    memory_bytes=200,
    num_processes=64,
)


def proc(folder: Path, cgroup: str, mountinfo: str) -> Path:
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mountinfo)
    return folder


def test_version_2_is_found(tmp_path: Path) -> None:
    where = find_hierarchies(
        proc(
            tmp_path,
            "0::/user.slice/run-1.scope\n",
            "24 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        )
    )
    assert where == Hierarchies(Path("/sys/fs/cgroup/user.slice/run-1.scope"), {})


def test_version_1_and_mixed_are_found_controller_by_controller(tmp_path: Path) -> None:
    where = find_hierarchies(
        proc(
            tmp_path,
            "5:cpu,cpuacct:/a\n4:memory:/docker/b/c\n3:name=systemd:/x\n0::/\n",
            "30 1 0:1 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            "31 1 0:2 /docker/b /cg/memory rw - cgroup cgroup rw,memory\n"
            "32 1 0:3 / /cg/systemd rw - cgroup cgroup rw,name=systemd\n"
            "33 1 0:4 / /cg/unified rw - cgroup2 cgroup2 rw\n",
        )
    )
    assert where.v2 == Path("/cg/unified")
    assert where.v1 == {
        "cpu": Path("/cg/cpu/a"),
        "cpuacct": Path("/cg/cpu/a"),
        "memory": Path("/cg/memory/c"),
    }


def test_no_control_groups_at_all_is_not_an_error(tmp_path: Path) -> None:
    assert find_hierarchies(tmp_path) == Hierarchies(None, {})
    groups = ControlGroups(Hierarchies())
    assert groups.controllers == frozenset()
    assert groups.create("x", ALL) is None
    assert len(groups.losses) == 5


def test_losses_name_what_is_missing_only(tmp_path: Path) -> None:
    groups = ControlGroups(Hierarchies(None, {"memory": tmp_path}))
    assert groups.controllers == {"memory"}
    text = " ".join(groups.losses)
    assert "cgroup.kill" in text
    assert "nice" in text
    assert "sampled" not in text


def test_a_read_only_tree_is_told_by_trying() -> None:
    groups = ControlGroups(Hierarchies(Path("/proc/self"), {"memory": Path("/proc")}))
    assert groups.controllers == frozenset()


def test_limits_of_version_1(tmp_path: Path) -> None:
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
    groups = ControlGroups(
        Hierarchies(None, {name: tmp_path / name for name in ("cpu", "memory", "pids")}), "mars-0"
    )
    assert groups.create("t", ALL) is not None
    written = {
        path.relative_to(tmp_path).as_posix().replace("mars-0/t/", ""): path.read_text().strip()
        for path in tmp_path.rglob("t/*")
    }
    assert written == {
        "cpu/cpu.shares": "512",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "150000",
        "memory/memory.soft_limit_in_bytes": "100",
        "memory/memory.limit_in_bytes": "200",
        "memory/memory.memsw.limit_in_bytes": "200",
        "pids/pids.max": "64",
    }


def test_a_group_exists_only_where_the_call_needs_it(tmp_path: Path) -> None:
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
    where = Hierarchies(None, {name: tmp_path / name for name in ("cpu", "memory", "pids")})
    groups = ControlGroups(where, "mars-0")
    groups.create("t", limits())
    assert [p.parent.parent.name for p in tmp_path.rglob("t")] == ["memory"]


def test_groups_of_a_runtime_that_was_killed_are_removed(tmp_path: Path) -> None:
    stale, own = tmp_path / "mars-999999999" / "tool-1", tmp_path / f"mars-{os.getpid()}"
    stale.mkdir(parents=True)
    own.mkdir()
    ControlGroups(Hierarchies(None, {"memory": tmp_path}))
    assert not stale.parent.exists()
    assert own.exists()


@pytest.fixture
def real() -> ControlGroups:
    groups = ControlGroups(name=f"mars-test-{os.getpid()}")
    if not groups.controllers:
        pytest.skip("no control group can be made on this machine")
    return groups


def test_a_real_group_holds_accounts_kills_and_goes(real: ControlGroups) -> None:
    group = real.create("t", limits())
    assert group is not None
    with subprocess.Popen(
        ["sh", "-c", "read -r _; setsid sleep 1000 & echo $!; exec sleep 1000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert group.add(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        escaped = int(process.stdout.readline())
        assert {process.pid, escaped} <= set(group.pids())
        assert not group.remove()
        end = os.pidfd_open(escaped)
        group.signal(9)
        process.wait(timeout=60)
        assert select.select([end], [], [], 60)[0]
        os.close(end)
    assert not any(map(is_alive, group.pids()))
    if group.gives("cpuacct"):
        assert (group.cpu_seconds() or 0.0) > 0.0
    real.retire(group)
    real.close()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/mars-test-{os.getpid()}"))
