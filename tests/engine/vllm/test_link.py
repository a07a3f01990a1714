# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("vllm")

from mars.telemetry.zmq_stream import endpoint_of_rank

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://127.0.0.1:5601", 0, "tcp://127.0.0.1:5601"),
        ("tcp://127.0.0.1:5601", 3, "tcp://127.0.0.1:5604"),
        ("ipc:///run/x/events", 0, "ipc:///run/x/events"),
        ("ipc:///run/x/events", 2, "ipc:///run/x/events.2"),
    ],
)
def test_each_data_parallel_rank_has_its_own_address(
    endpoint: str, rank: int, expected: str
) -> None:
    assert endpoint_of_rank(endpoint, rank) == expected


def test_an_address_without_a_port_is_refused_beyond_rank_0() -> None:
    with pytest.raises(ValueError, match="names no port"):
        endpoint_of_rank("tcp://127.0.0.1:*", 1)
