# SPDX-License-Identifier: Apache-2.0
"""What a request is answered with: a script from ``vllm_xargs``, or filler.

======================  ==================================================================
``mars_reply_tokens``   N: ``filler(seed, start, N)``, then the end-of-sequence token
``mars_reply_seed``     content id of that filler (default: derived from the prompt)
``mars_reply_start``    position of its first token (default 0)
``mars_reply_text``     this text, tokenised, then the end-of-sequence token
nothing of these        filler up to ``max_tokens``
======================  ==================================================================

There is no model behind it: log-probabilities are not given (vLLM answers 500), and where a
request demands a form (``response_format``, ``tool_choice: required``), the script must have
that form already; vLLM ends a request whose reply breaks its grammar with an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mars.traces.content import filler_array

Encode = Callable[[str], Sequence[int]]


class BadScriptError(ValueError):
    """A script in ``vllm_xargs`` cannot be read; the message names the field."""


def reply_tokens(
    script: Mapping[str, Any], prompt: Sequence[int], max_tokens: int, encode: Encode
) -> Sequence[int]:
    """Return the tokens of a reply, without end-of-sequence; that follows the last one.

    A reply of ``max_tokens`` or more is cut there; the engine then stops by itself. One token
    takes one byte where it is filler. A script that cannot be read is answered with the
    reason, because by now nobody can refuse the request.
    """
    try:
        return _reply_tokens(script, prompt, max_tokens, encode)
    except BadScriptError as error:
        return list(encode(f"mars: {error}"))[:max_tokens]


def _reply_tokens(
    script: Mapping[str, Any], prompt: Sequence[int], max_tokens: int, encode: Encode
) -> Sequence[int]:
    text = script.get("mars_reply_text")
    if text is not None:
        return list(encode(str(text)))[:max_tokens]
    count = _count(script, "mars_reply_tokens", max_tokens)
    seed = str(script.get("mars_reply_seed") or prompt_content_id(prompt))
    start = _count(script, "mars_reply_start", 0)
    return filler_array(seed, start, min(count, max_tokens)).tobytes()


def prompt_content_id(prompt: Sequence[int]) -> str:
    """A content id that is equal for equal prompts, from their length and last tokens.

    So an unscripted reply is the same each time it is asked for, like a greedy one.
    """
    tail = ",".join(map(str, prompt[-64:]))
    return "prompt:" + hashlib.blake2b(f"{len(prompt)}:{tail}".encode(), digest_size=8).hexdigest()


def _count(script: Mapping[str, Any], name: str, default: int) -> int:
    value = script.get(name, default)
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if count < 0 or count != float(value):
        raise BadScriptError(f"vllm_xargs.{name} = {value!r}; must be a whole number >= 0")
    return count
