# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from mars.engine.emulated import prepare_model_dir
from mars.profiles import Profile
from mars.traces.content import filler

pytestmark = pytest.mark.vllm
CALL = {"type": "function", "function": {"name": "run", "arguments": {"path": "a b"}}}
CALL_TEXT = '<tool_call>\n{"name": "run", "arguments": {"path": "a b"}}\n</tool_call>'


@pytest.fixture(scope="module")
def directory(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_model_dir(profile, tmp_path_factory.mktemp("emulated") / "deep" / "model")


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def test_configuration_has_the_models_shape(directory: Path, profile: Profile) -> None:
    content = json.loads((directory / "config.json").read_text())
    shape = profile.architecture
    assert content["num_hidden_layers"] == shape.num_layers == 48
    assert content["num_key_value_heads"] == shape.num_kv_heads == 4
    assert content["max_position_embeddings"] == shape.max_positions == 262_144


def test_filler_survives_the_way_through_text(tokenizer: Any) -> None:
    tokens = [*filler("a", 0, 2000), *range(16, 240)]
    text = tokenizer.decode(tokens)
    assert tokenizer.encode(text, add_special_tokens=False) == tokens
    assert text.isascii()
    assert len(text) == 2 * len(tokens)


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x\n", "Grüße, 世界 😀", "\x00\x7f\xa0", " "])
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(tokens) == text
    assert all(16 <= token < 496 for token in tokens)


def test_marks_are_single_tokens_and_stay_in_the_text(tokenizer: Any) -> None:
    tokens = tokenizer.encode(CALL_TEXT, add_special_tokens=False)
    assert (tokens[0], tokens[-1]) == (3, 4)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == CALL_TEXT
    assert (len(tokenizer), tokenizer.eos_token_id) == (496, 2)


@pytest.mark.parametrize("content", ["", "I run it."])
def test_next_prompt_continues_the_last_prompt_and_reply(tokenizer: Any, content: str) -> None:
    """What a chat client sends back renders to what was generated, so that its KV is found."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Test it."},
    ]
    tools = [CALL]
    first = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    messages += [
        {"role": "assistant", "content": content, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "passed"},
    ]
    second = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    reply = "\n".join(filter(None, (content, CALL_TEXT, CALL_TEXT)))
    assert second.startswith(f"{first}{reply}<|im_end|>\n")
    assert second.endswith(
        "<|im_start|>user\n<tool_response>\npassed\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
