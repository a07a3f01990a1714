# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from mars.engine.emulated.reply import reply_tokens
from mars.traces.content import filler

PROMPT = list(range(16, 116))


def reply(script: dict[str, Any], max_tokens: int = 100, prompt: list[int] = PROMPT) -> list[int]:
    return list(reply_tokens(script, prompt, max_tokens, lambda text: list(text.encode())))


def test_filler_of_the_named_content() -> None:
    script = {"mars_reply_tokens": 9, "mars_reply_seed": "s", "mars_reply_start": 4}
    assert reply(script) == filler("s", 4, 9)


def test_numbers_may_come_as_text_or_float() -> None:
    assert reply({"mars_reply_tokens": "9", "mars_reply_seed": "s"}) == filler("s", 0, 9)
    assert reply({"mars_reply_tokens": 9.0, "mars_reply_seed": "s"}) == filler("s", 0, 9)


def test_text_wins_and_both_end_at_max_tokens() -> None:
    assert reply({"mars_reply_text": "héllo", "mars_reply_tokens": 3}) == list("héllo".encode())
    assert reply({"mars_reply_text": "hello"}, max_tokens=2) == list(b"he")
    assert len(reply({"mars_reply_tokens": 500}, max_tokens=7)) == 7


def test_empty_replies_are_replies() -> None:
    assert reply({"mars_reply_text": ""}) == []
    assert reply({"mars_reply_tokens": 0}) == []


def test_without_script_equal_prompts_get_equal_filler_up_to_max_tokens() -> None:
    assert reply({}) == reply({}) != reply({}, prompt=[*PROMPT, 16])
    assert len(reply({})) == 100
    assert reply({})[:50] == reply({"mars_reply_tokens": 50})


@pytest.mark.parametrize("value", ["many", -1, 2.5, "1e3", [4], None])
def test_bad_number_is_answered_with_its_name(value: Any) -> None:
    for name in ("mars_reply_tokens", "mars_reply_start"):
        text = bytes(reply({name: value})).decode()
        assert f"vllm_xargs.{name} = {value!r}" in text
