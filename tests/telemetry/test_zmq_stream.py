# SPDX-License-Identifier: Apache-2.0
"""The engine's end: commands, the ring, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mars.telemetry.subscriber import ControlSender
from mars.telemetry.zmq_stream import ControlReceiver, EventPublisher, Ring, StreamError


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/control"


@pytest.fixture
def receiver(endpoint: str) -> Iterator[ControlReceiver]:
    receiver = ControlReceiver(endpoint)
    yield receiver
    receiver.close()


def poll_until(receiver: ControlReceiver, count: int) -> list[dict[str, object]]:
    got: list[dict[str, object]] = []
    for _ in range(2000):
        got += receiver.poll()
        if len(got) >= count:
            break
        receiver.wait(0.01)
    return got


def test_commands_arrive_in_order_and_nonsense_is_counted(
    endpoint: str, receiver: ControlReceiver
) -> None:
    sender = ControlSender(endpoint)
    sender.send("session_end", session_id="s")
    sender._socket.send(b"\xc1")
    sender._socket.send(msgspec.msgpack.encode([1]))
    sender.send("replay", first=1)  # lacks its ticket
    sender.send("tool_finished", session_id="s", time=1.0)
    assert poll_until(receiver, 2) == [
        {"op": "session_end", "session_id": "s"},
        {"op": "tool_finished", "session_id": "s", "time": 1.0},
    ]
    assert receiver.num_malformed == 3
    sender.close()


def test_polling_an_empty_channel_returns_at_once(receiver: ControlReceiver) -> None:
    assert list(receiver.poll()) == []


def test_a_sender_nobody_reads_drops_and_counts(endpoint: str) -> None:
    sender = ControlSender(endpoint, hwm=5)
    for _ in range(20):
        sender.send("session_end", session_id="s")
    assert sender.num_dropped == 15
    sender.close()


def test_an_endpoint_that_cannot_be_bound_names_the_setting() -> None:
    with pytest.raises(StreamError, match=r"engine\.events_endpoint"):
        EventPublisher("ipc:///no/such/folder/events")


def test_the_ring_forgets_the_oldest_batches_by_number_and_by_size() -> None:
    ring = Ring(max_batches=3, max_bytes=10)
    for first in (1, 3, 5, 7):
        ring.keep(first, first + 1, b"%d" % first)
    assert ring.between(1, 100) == [b"3", b"5", b"7"]
    assert ring.between(4, 5) == [b"3", b"5"]
    ring.keep(9, 9, b"x" * 9)
    assert ring.between(1, 100) == [b"7", b"x" * 9]
