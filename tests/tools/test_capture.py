# SPDX-License-Identifier: Apache-2.0
"""What is kept of an output is its head and its tail, and the count of the rest is exact."""

from hypothesis import given
from hypothesis import strategies as st

from mars.tools.capture import BoundedCapture


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(2, 64))
def test_head_and_tail_are_kept_whatever_the_chunks(chunks: list[bytes], limit: int) -> None:
    capture = BoundedCapture(limit)
    for chunk in chunks:
        capture.feed(chunk)
    whole = b"".join(chunks)
    half = limit // 2
    assert capture.num_bytes == len(whole)
    if len(whole) <= 2 * half:
        assert capture.value() == whole
    else:
        line = f"\n[mars: {len(whole) - 2 * half} bytes of output left out here]\n".encode()
        assert capture.value() == whole[:half] + line + whole[-half:]


@given(st.lists(st.integers(1, 5000), max_size=20))
def test_memory_stays_bounded(sizes: list[int]) -> None:
    capture = BoundedCapture(100)
    for size in sizes:
        capture.feed(b"x" * size)
        assert len(capture._head) + len(capture._tail) <= 200
