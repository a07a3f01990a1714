# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow, silent, mad or many."""

from __future__ import annotations

import socket
from pathlib import Path

from mars.config import GatewayConfig
from mars.gateway import listen
from mars.testing import faults_clients


async def test_two_thousand_held_sessions_are_all_served(folder: Path) -> None:
    out = await faults_clients.held_sessions(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 2001}
    assert out.noted["held"] == 2000
    assert out.noted["kib_per_held_session"] < 100


async def test_who_does_not_read_a_stream_holds_up_the_engine_not_the_gateway(
    folder: Path,
) -> None:
    out = await faults_clients.slow_model_readers(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 21}
    # What nobody reads is not read from the engine either: it could not finish.
    assert out.noted["engine_held_back"]
    assert out.noted["cancelled_in_the_engine"] == 6


async def test_who_does_not_read_events_is_told_how_many_it_missed(folder: Path) -> None:
    out = await faults_clients.slow_event_reader(folder)
    assert out.is_nothing_lost, out.lost
    assert out.noted["told_lost"] > 0


async def test_nonsense_gets_400_and_changes_nothing(folder: Path) -> None:
    out = await faults_clients.nonsense(folder)
    assert out.is_nothing_lost, out.noted
    assert out.clients_saw["200, whole"] == 1
    assert sum(out.clients_saw.values()) == 1 + 2 * len(faults_clients.NONSENSE)


async def test_half_open_connections_disturb_nobody(folder: Path) -> None:
    out = await faults_clients.half_open(folder)
    assert out.is_nothing_lost, out.lost
    assert out.clients_saw == {"200, whole": 20}


def test_accepted_connections_notice_a_vanished_host() -> None:
    with (
        listen(GatewayConfig(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
