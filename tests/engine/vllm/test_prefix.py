# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("vllm")

from hypothesis import given
from hypothesis import strategies as st

from mars.engine.vllm.prefix import STRIDE, PrefixAnchor

pytestmark = pytest.mark.vllm


def chain(*parts: tuple[str, int]) -> list[str]:
    """Block hashes that chain over their prefix, from (content, count) parts."""
    hashes: list[str] = []
    for content, count in parts:
        start = len(hashes)
        before = hashes[-1] if hashes else ""
        hashes += [f"{before[:40]}/{content}{start + i}" for i in range(count)]
    return hashes


def test_a_prompt_that_extends_the_last_turn_reuses_all_of_it() -> None:
    anchor = PrefixAnchor.of(chain(("a", 70)))
    assert anchor is not None
    assert anchor.reusable_blocks(chain(("a", 70), ("b", 5))) == 70


def test_nothing_is_reusable_of_a_prompt_that_begins_otherwise() -> None:
    anchor = PrefixAnchor.of(chain(("a", 70)))
    assert anchor is not None
    assert anchor.reusable_blocks(chain(("x", 90))) == 0


def test_a_turn_without_a_full_block_leaves_no_anchor() -> None:
    assert PrefixAnchor.of([]) is None


@given(common=st.integers(0, 200), old=st.integers(0, 200), new=st.integers(0, 200))
def test_a_compacted_prompt_is_rounded_down_never_up(common: int, old: int, new: int) -> None:
    before = chain(("a", common), ("b", old + 1))
    after = chain(("a", common), ("c", new))
    anchor = PrefixAnchor.of(before)
    assert anchor is not None
    reusable = anchor.reusable_blocks(after)
    assert reusable <= common
    assert reusable > common - STRIDE
