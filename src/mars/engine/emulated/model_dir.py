# SPDX-License-Identifier: Apache-2.0
"""A model directory without weights: configuration and a small tokenizer, made by code.

The configuration has the pretended model's layers, heads and positions, in the form of a
dense Qwen3 whatever the model is: vLLM sizes nothing else by it, because KV pool and step
time come from the profile. The tokenizer has 496 tokens:

======== =====================================================================
0-15     special tokens (chat roles, end of turn, tool-call marks, reserved)
16-239   syllables of two letters: the filler of :mod:`mars.traces.content`
240-495  the 256 bytes
======== =====================================================================

Syllables are built so that filler survives the way through text: decoding it and encoding
it again gives the same tokens, so a chat client's next turn finds its prefix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mars.core.cost import Architecture
from mars.profiles import Profile
from mars.traces.content import FIRST_TOKEN, NUM_TOKENS, filler_array

END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
FIRST_BYTE = FIRST_TOKEN + NUM_TOKENS
VOCABULARY_SIZE = FIRST_BYTE + 256

# 28 x 8 = 224 syllables. No letter is in both, so a text of syllables splits one way only.
FIRST_LETTERS = "bcdfghjklmnpqrstvwxyzBDFGKLM"
SECOND_LETTERS = "aeiouAEI"

# The form of Hermes and Qwen: tool calls as JSON between marks, results as user messages.
_CHAT_TEMPLATE = """\
{%- macro turn(role, content) -%}
{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n' }}
{%- endmacro -%}
{%- macro calls(message) -%}
{%- for call in message.tool_calls or [] -%}
{{ '\\n' if message.content or not loop.first else '' }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor -%}
{%- endmacro -%}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{ turn('system', system + '\\n# Tools\\n' + tools | map('tojson') | join('\\n')) }}
{%- elif system -%}
{{ turn('system', system) }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ turn('user', '<tool_response>\\n' + message.content + '\\n</tool_response>') }}
{%- elif message.role == 'assistant' and message.tool_calls -%}
{{ turn('assistant', (message.content or '').rstrip('\\n') + calls(message)) }}
{%- elif not (message.role == 'system' and loop.first) -%}
{{ turn(message.role, message.content or '') }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


def filler_text(content_id: str, count: int) -> str:
    """Text of exactly ``count`` tokens of this tokenizer, always the same for a content id."""
    letters = [first + second for first in FIRST_LETTERS for second in SECOND_LETTERS]
    return "".join(letters[token - FIRST_TOKEN] for token in filler_array(content_id, 0, count))


def prepare_model_dir(profile: Profile, directory: Path) -> Path:
    """Write the directory for vLLM's ``--model`` (``--load-format dummy``).

    Args:
        profile: its architecture becomes the configuration.
        directory: made if missing; files in it are overwritten.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _model_configuration(profile.architecture),
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_configuration(profile.architecture),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def _model_configuration(shape: Architecture) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": 4 * shape.hidden_size,
        "max_position_embeddings": shape.max_positions,
        "vocab_size": VOCABULARY_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "eos_token_id": SPECIAL_TOKENS.index(END_OF_TURN),
        "pad_token_id": 0,
    }


def _tokenizer_configuration(shape: Architecture) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _tokenizer() -> dict[str, Any]:
    """The ``tokenizer.json`` of Hugging Face's tokenizers: byte-level BPE, 224 merges."""
    letters = _byte_letters()
    syllables = [first + second for first in FIRST_LETTERS for second in SECOND_LETTERS]
    added = _added_tokens()
    vocabulary: dict[str, int] = {token["content"]: token["id"] for token in added}
    vocabulary |= {syllable: FIRST_TOKEN + index for index, syllable in enumerate(syllables)}
    vocabulary |= {letter: FIRST_BYTE + byte for byte, letter in enumerate(letters)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(syllable) for syllable in syllables],
        },
    }


def _added_tokens() -> list[dict[str, Any]]:
    """Special tokens vanish from text; the marks stay, for the tool-call parser to find."""
    named = (*SPECIAL_TOKENS, *MARKS)
    reserved = tuple(f"<|reserved_{index}|>" for index in range(len(named), FIRST_TOKEN))
    return [
        {
            "id": index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content not in MARKS,
        }
        for index, content in enumerate((*named, *reserved))
    ]


def _byte_letters() -> list[str]:
    """The printable stand-in of each byte that byte-level BPE uses (as GPT-2 does)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters: list[str] = []
    num_moved = 0
    for byte in range(256):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + num_moved))
            num_moved += 1
    return letters
