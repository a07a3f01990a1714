# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import psutil

from tests.cli.conftest import Run, is_gone


def test_output_and_status_are_the_commands_own(mars: Run):
    ran = mars("exec", "--report", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ran.returncode, ran.stdout) == (3, "out\n")
    assert ran.stderr.startswith("err\n")
    assert "exit code 3" in ran.stderr


def test_flags_after_the_dashes_belong_to_the_command(mars: Run):
    assert mars("exec", "--", "echo", "--report", "-n").stdout == "--report -n\n"


def test_a_timeout_ends_it_with_all_it_started(mars: Run):
    ran = mars("exec", "--timeout-s", "0.5", "--", "sh", "-c", "sleep 600 & echo $!; wait")
    assert ran.returncode > 128
    assert "timeout of 0.5 s" in ran.stderr
    pid = int(ran.stdout)
    assert not psutil.pid_exists(pid) or is_gone(psutil.Process(pid))


def test_a_missing_command_is_status_127_and_none_is_an_error(mars: Run):
    assert mars("exec", "--", "no-such-command-here").returncode == 127
    ran = mars("exec")
    assert ran.returncode == 1
    assert "there is no command" in ran.stderr
