# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket

import pytest

from mars.cli.errors import CliError
from mars.cli.ports import free_port, require_free


def test_a_free_port_can_be_bound():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))


def test_a_free_port_passes(free_port: int):
    require_free("127.0.0.1", free_port, "gateway.port")


def test_a_taken_port_names_the_setting_the_owner_and_another_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CliError) as caught:
            require_free("127.0.0.1", port, "gateway.port")
    assert f"gateway.port: port {port} on 127.0.0.1 is in use by" in caught.value.cause
    assert f"(pid {os.getpid()})" in caught.value.cause
    assert "--port" in caught.value.fix


def test_a_foreign_address_is_refused(free_port: int):
    with pytest.raises(CliError, match="cannot listen on 192.0.2.1") as caught:
        require_free("192.0.2.1", free_port, "gateway.port")
    assert "gateway.host" in caught.value.fix
